"""The `secrets` blueprint: what a client can ask for. And `health` and `figures`, for whoever runs the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar, cast

from quart import Blueprint, Response, current_app, request
from quart_schema import document_response, hide, tag, validate_request, validate_response

from . import crypto, metrics, models
from .db import Database
from .drain import Drain
from .errors import ReceiptNotFoundError, SecretNotFoundError, WrongPassphraseError
from .kdf import KdfPool
from .problems import (
    AlreadyEndedProblem,
    InvalidBodyProblem,
    MediaTypeProblem,
    NotFoundProblem,
    TimeoutProblem,
    TooLargeProblem,
    TooManyRequestsProblem,
    UnavailableProblem,
    WrongPassphraseProblem,
)
from .schemas import (
    GenerateRequest,
    GenerateResponse,
    HealthResponse,
    ReadRequest,
    ReadResponse,
    ReceiptResponse,
    WaitingResponse,
)

P = ParamSpec("P")
T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Any])

blueprint = Blueprint("secrets", __name__)
health = Blueprint("health", __name__, url_prefix="/health")
figures = Blueprint("figures", __name__)

EXTENSION = "quart_ots"
_PROBLEMS = {
    400: InvalidBodyProblem,
    403: WrongPassphraseProblem,
    404: NotFoundProblem,
    408: TimeoutProblem,
    409: AlreadyEndedProblem,
    413: TooLargeProblem,
    415: MediaTypeProblem,
    429: TooManyRequestsProblem,
    503: UnavailableProblem,
}
_OF_A_BODY = (400, 408, 413, 415)


@dataclass(frozen=True)
class Parts:
    """What create_app hands to the handlers."""

    ring: crypto.KeyRing
    kdf: KdfPool
    cost: int
    clock: Callable[[], datetime]
    database: Database
    drain: Drain
    # What goes on when its client has hung up. Held here, as the event loop itself holds tasks but weakly.
    steps: set[asyncio.Task[Any]] = field(default_factory=set)

    async def to_the_end(self, step: Coroutine[Any, Any, T]) -> T:
        """Take a step whole, even if the client hangs up meanwhile and the server drops its request.

        Or a guesser who hangs up would leave the envelope of a secret that it locked, and a busy thread its place.
        """
        task = asyncio.create_task(step)
        self.steps.add(task)
        task.add_done_callback(self._note_end)
        return await asyncio.shield(task)

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        """Forget a step; look at its error, or asyncio would log it where nobody is left to raise it for."""
        self.steps.discard(task)
        if not task.cancelled():
            task.exception()

    async def finish(self) -> None:
        """Wait for the steps that go on: the app may not end between an attempt and its outcome."""
        await asyncio.gather(*self.steps, return_exceptions=True)


def utc_now() -> datetime:
    """Give the time in UTC, to the millisecond, which is all that MongoDB keeps."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _parts() -> Parts:
    return cast(Parts, current_app.extensions[EXTENSION])


def _problems(*statuses: int) -> Callable[[Handler], Handler]:
    """Document the problems that an operation answers with."""

    def document(handler: Handler) -> Handler:
        for status in statuses:
            handler = document_response(_PROBLEMS[status], status)(handler)
        return handler

    return document


@blueprint.post("/generate")
@validate_request(GenerateRequest)
@validate_response(GenerateResponse, 201)
@_problems(*_OF_A_BODY, 429, 503)
@tag(["secrets"])
async def generate(data: GenerateRequest) -> tuple[GenerateResponse, int]:
    """Create a secret.

    The answer's `secret_key` is for the reader, together with the passphrase, best sent another way. Its
    `receipt_key` is for the creator. The service keeps neither.
    """
    parts = _parts()
    secret_key, receipt_key = crypto.new_key(), crypto.new_key()
    phrase, text = data.passphrase.get_secret_value(), data.secret.get_secret_value()
    # Nothing is stored yet: if the client hangs up, what waits in the pool is dropped.
    with parts.kdf.place():
        sealed = await parts.kdf.run(crypto.seal, parts.ring, secret_key, phrase, text, parts.cost)
    lookup_id, receipt_id = crypto.lookup_id(secret_key), crypto.receipt_id(receipt_key)
    expires_at = await models.create(lookup_id, receipt_id, sealed, parts.ring.ids[0], parts.clock(), data.ttl)
    return GenerateResponse(secret_key=secret_key, receipt_key=receipt_key, expires_at=expires_at), 201


@blueprint.post("/secrets/<secret_key>")
@validate_request(ReadRequest)
@validate_response(ReadResponse)
@_problems(*_OF_A_BODY, 403, 404, 429, 503)
@tag(["secrets"])
async def read_secret(secret_key: str, data: ReadRequest) -> ReadResponse:
    """Read a secret, once.

    A wrong passphrase takes one of ten attempts, and so does a right one; after the last wrong one the secret is
    locked for good. 404 does not tell whether a secret never existed, or was read, burned or locked, or expired.
    """
    parts = _parts()
    lookup_id = _lookup_id(secret_key)
    phrase = data.passphrase.get_secret_value()
    sealed = await models.fetch_envelope(lookup_id, parts.clock())
    crypto.parse(sealed, parts.ring)
    secret = await parts.to_the_end(_attempt(parts, lookup_id, secret_key, phrase, sealed))
    await parts.to_the_end(models.claim(lookup_id, parts.clock()))
    return ReadResponse(secret=secret)


@blueprint.get("/secrets/<secret_key>")
@validate_response(WaitingResponse)
@_problems(404, 429, 503)
@tag(["secrets"])
async def look_at_secret(secret_key: str) -> WaitingResponse:
    """See whether a secret waits to be read.

    Never reads it, nor takes an attempt: link previews do no harm.
    """
    secret = await models.fetch_waiting(_lookup_id(secret_key), _parts().clock())
    return WaitingResponse(expires_at=secret.expires_at, attempts_left=secret.attempts_left)


@blueprint.get("/receipts/<receipt_key>")
@validate_response(ReceiptResponse)
@_problems(404, 429, 503)
@tag(["receipts"])
async def look_at_receipt(receipt_key: str) -> ReceiptResponse:
    """See what became of a secret.

    A receipt is kept for twice the secret's ttl.
    """
    now = _parts().clock()
    return _receipt(await models.fetch_receipt(_receipt_id(receipt_key)), now)


@blueprint.delete("/receipts/<receipt_key>")
@validate_response(ReceiptResponse)
@_problems(404, 409, 429, 503)
@tag(["receipts"])
async def burn_secret(receipt_key: str) -> ReceiptResponse:
    """Burn a secret before it is read.

    Burning it again answers the same. A secret that was read, locked or has expired can't be burned: 409 says which.
    """
    now = _parts().clock()
    return _receipt(await models.burn(_receipt_id(receipt_key), now), now)


@health.get("/live")
@validate_response(HealthResponse)
@tag(["health"])
async def live() -> HealthResponse:
    """See whether the service runs, whatever its database does."""
    return HealthResponse()


@health.get("/ready")
@validate_response(HealthResponse)
@_problems(503)
@tag(["health"])
async def ready() -> HealthResponse:
    """See whether the service can serve.

    It can while it is not being stopped, has room for another secret to be sealed or opened, and its database
    has its indexes and answers a read within a second. (A service without a master key does not start.)
    """
    parts = _parts()
    parts.drain.check()
    parts.kdf.check()
    await parts.database.check()
    return HealthResponse()


@figures.get("/metrics")
@hide
async def show_metrics() -> Response:
    """Tell Prometheus how the service does."""
    body, content_type = metrics.expose(request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)


async def _attempt(parts: Parts, lookup_id: str, secret_key: str, passphrase: str, sealed: bytes) -> str:
    """Take an attempt, then open the envelope, or count the failure."""
    with parts.kdf.place():
        await models.reserve_attempt(lookup_id, parts.clock())
        try:
            return await parts.kdf.run(crypto.open, parts.ring, secret_key, passphrase, sealed)
        except crypto.NotOpenedError:
            raise WrongPassphraseError(await models.count_failure(lookup_id)) from None


def _lookup_id(secret_key: str) -> str:
    if not crypto.is_key(secret_key):
        raise SecretNotFoundError
    return crypto.lookup_id(secret_key)


def _receipt_id(receipt_key: str) -> str:
    if not crypto.is_key(receipt_key):
        raise ReceiptNotFoundError
    return crypto.receipt_id(receipt_key)


def _receipt(secret: models.Secret, now: datetime) -> ReceiptResponse:
    return ReceiptResponse(
        state=secret.state_at(now),
        created_at=secret.created_at,
        expires_at=secret.expires_at,
        ended_at=secret.ended_at_by(now),
        attempts_left=secret.attempts_left,
    )
