"""The `secrets` blueprint: what a client can ask for. A handler calls one function of `life` and shapes the answer."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from quart import Blueprint, current_app
from quart_schema import tag, validate_request, validate_response

from ..edge.request import info, run_to_completion
from ..vault import life
from ..vault.errors import RefusedError, UnavailableError
from .bodies import GenerateRequest, GenerateResponse, ReadRequest, ReadResponse, ReceiptResponse, WaitingResponse
from .problems import documented, register
from .strict_json import BLUEPRINT

T = TypeVar("T")

EXTENSION = "quart_ots.services"
_OF_A_BODY = (400, 408, 413, 415)

blueprint = Blueprint(BLUEPRINT, __name__)
register(blueprint)


def _services() -> life.Services:
    return cast(life.Services, current_app.extensions[EXTENSION])


async def _whole(step: Coroutine[Any, Any, T]) -> T:
    """Run a step of a secret's life whole, even if the client hangs up meanwhile."""
    return await run_to_completion(step, expected=(RefusedError, UnavailableError))


@blueprint.post("/generate")
@validate_request(GenerateRequest)
@validate_response(GenerateResponse, 201)
@documented(*_OF_A_BODY, 429, 503)
@tag(["secrets"])
async def generate(data: GenerateRequest) -> tuple[GenerateResponse, int]:
    """Create a secret.

    The answer's `secret_key` is for the reader, together with the passphrase, best sent another way. Its
    `receipt_key` is for the creator. The service keeps neither.
    """
    secret, passphrase = data.secret.get_secret_value(), data.passphrase.get_secret_value()
    created = await _whole(life.create(_services(), secret, passphrase, data.ttl, info().gone))
    return GenerateResponse(**created._asdict()), 201


@blueprint.post("/secrets/<secret_key>")
@validate_request(ReadRequest)
@validate_response(ReadResponse)
@documented(*_OF_A_BODY, 403, 404, 429, 503)
@tag(["secrets"])
async def read_secret(secret_key: str, data: ReadRequest) -> ReadResponse:
    """Read a secret, once.

    A wrong passphrase takes one of ten attempts, and so does a right one; after the last wrong one the secret is
    locked for good. 404 does not tell whether a secret never existed, or was read, burned or locked, or expired.
    """
    passphrase = data.passphrase.get_secret_value()
    return ReadResponse(secret=await _whole(life.read(_services(), secret_key, passphrase, info().gone)))


@blueprint.get("/secrets/<secret_key>")
@validate_response(WaitingResponse)
@documented(404, 429, 503)
@tag(["secrets"])
async def look_at_secret(secret_key: str) -> WaitingResponse:
    """See whether a secret waits to be read.

    Never reads it, nor takes an attempt: link previews do no harm.
    """
    return WaitingResponse(**(await life.look(_services(), secret_key))._asdict())


@blueprint.get("/receipts/<receipt_key>")
@validate_response(ReceiptResponse)
@documented(404, 429, 503)
@tag(["receipts"])
async def look_at_receipt(receipt_key: str) -> ReceiptResponse:
    """See what became of a secret.

    A receipt is kept for twice the secret's ttl, and for a day longer than the secret at the least.
    """
    return ReceiptResponse(**(await life.receipt(_services(), receipt_key))._asdict())


@blueprint.delete("/receipts/<receipt_key>")
@validate_response(ReceiptResponse)
@documented(404, 409, 429, 503)
@tag(["receipts"])
async def burn_secret(receipt_key: str) -> ReceiptResponse:
    """Burn a secret before it is read.

    Burning it again answers the same. A secret that was read, locked or has expired can't be burned: 409 says which.
    """
    return ReceiptResponse(**(await _whole(life.burn(_services(), receipt_key)))._asdict())
