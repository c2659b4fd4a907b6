"""Every problem that a client can be told of, in one table: handlers, openapi.json and docs/errors.md come from it.

Answers are problem+json (RFC 9457, section 3.1) and never repeat what was sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError, create_model
from quart import Blueprint, Quart, Response
from quart_rate_limiter import RateLimitExceeded
from quart_schema import RequestSchemaValidationError, document_response
from werkzeug.exceptions import HTTPException

from .. import metrics
from ..edge.request import request_id
from ..vault import errors

Handler = TypeVar("Handler", bound=Callable[..., Any])

TYPE = "urn:quart-ots:problem:"
CONTENT_TYPE = "application/problem+json"
# A body of unknown fields would be answered at four times its length otherwise.
MAX_FAULTS = 20


class MalformedBodyError(Exception):
    """The body is not JSON as RFC 8259 and RFC 7493 have it.

    Args:
        detail: What is wrong, in words of ours.

    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class UnsupportedMediaTypeError(Exception):
    """The body's content type, charset or content coding is not taken."""


class Fault(BaseModel):
    """What is wrong with one field."""

    field: str | None = Field(description="Null for the body itself, or a field that the operation does not know.")
    reason: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class Row(NamedTuple):
    """One kind of problem.

    Args:
        error: The class that it answers; a status where Quart or an extension raises it.
        name: The end of its type.
        title: The same for every occurrence.
        status: Of HTTP.
        detail: What it means for the client.
        when: For docs/errors.md.
        members: What it says beyond RFC 9457's members: name and pydantic's type, the attribute of the error that has
            the value being named alike.
        also: For docs/errors.md: what else the answer carries.

    """

    error: type[Exception] | int
    name: str
    title: str
    status: int
    detail: str
    when: str
    members: Mapping[str, Any] = {}
    also: str = ""


TABLE = (
    Row(
        MalformedBodyError,
        "malformed-body",
        "Malformed body",
        400,
        "",  # the error's own
        "not JSON in UTF-8; a name twice in one object; NaN; a byte order mark; nested too deep",
    ),
    Row(
        RequestSchemaValidationError,
        "invalid-body",
        "Invalid body",
        400,
        "The body does not fit the operation. Nothing was stored, read or counted.",
        "JSON, but a field is missing, unknown, of another type or out of bounds",
        {"errors": (list[Fault], Field(default=[]))},
        "`errors`: a list of `field` and `reason`; `field` is null for the body as a whole and for fields that the "
        "operation does not know",
    ),
    Row(
        400,
        "bad-request",
        "Bad request",
        400,
        "The request is not one that the service understands.",
        "not a request that the service understands",
    ),
    Row(
        errors.WrongPassphraseError,
        "wrong-passphrase",
        "Wrong passphrase",
        403,
        "The passphrase does not open this secret. With no attempts left it is locked for good.",
        "the secret waits, but the passphrase is not its own; an attempt was taken",
        {"attempts_left": (Annotated[int, Field(ge=0, le=9)], ...)},
        "`attempts_left`; at 0 the secret is locked",
    ),
    Row(
        errors.SecretNotFoundError,
        "secret-not-found",
        "Secret not found",
        404,
        "It never existed, or it has been read, burned, locked or has expired.",
        "unknown, read, burned, locked or expired; the answer does not say which",
    ),
    Row(
        errors.ReceiptNotFoundError,
        "receipt-not-found",
        "Receipt not found",
        404,
        "It never existed, or it has been deleted some time after its secret ended.",
        "unknown, or deleted: a receipt is kept for twice its secret's ttl, and for a day longer than the secret at "
        "the least",
    ),
    Row(404, "not-found", "Not found", 404, "Nothing is served here.", "no such path"),
    Row(
        405,
        "method-not-allowed",
        "Method not allowed",
        405,
        "The Allow header lists what can be done here.",
        "the path does not do that",
        {},
        "header `Allow`",
    ),
    Row(
        408,
        "request-timeout",
        "Request timeout",
        408,
        "The body did not arrive in time.",
        "the body took longer than 30 s",
    ),
    Row(
        errors.AlreadyEndedError,
        "already-ended",
        "Secret has already ended",
        409,
        "Only a secret that waits to be read can be burned.",
        "the secret that was to be burned had ended otherwise, and stays so",
        {"state": (Literal["read", "locked", "expired"], ...)},
        "`state`: `read`, `locked` or `expired`",
    ),
    Row(
        413,
        "body-too-large",
        "Body too large",
        413,
        "The body is larger than any valid one.",
        "over 403,456 bytes, more than any valid body can have",
    ),
    Row(
        UnsupportedMediaTypeError,
        "unsupported-media-type",
        "Unsupported media type",
        415,
        "Send JSON in UTF-8 as Content-Type: application/json, with no Content-Encoding.",
        "not `application/json`, another charset than UTF-8, or any `Content-Encoding`",
    ),
    Row(
        RateLimitExceeded,
        "too-many-requests",
        "Too many requests",
        429,
        "Wait for as many seconds as the Retry-After header says.",
        "the client's budget is spent",
        {},
        "header `Retry-After`",
    ),
    Row(
        500,
        "internal-error",
        "Internal error",
        500,
        "The service is at fault. Its log has more under the id in the X-Request-ID header.",
        "a fault of the service",
        {},
        "`request_id`, where a handler failed: find it, or the header `X-Request-ID`, in the log",
    ),
    Row(
        errors.BusyError,
        "busy",
        "Busy",
        503,
        "Too many secrets are being sealed and opened at once. No attempt was taken.",
        "too many secrets are being sealed and opened; no attempt was taken",
        {},
        "header `Retry-After`: an estimate of when those in line will be through",
    ),
    Row(
        errors.DrainingError,
        "draining",
        "Draining",
        503,
        "This server is being stopped. No secret was created, read or burned.",
        "the server is being stopped: from `/health/ready` at once, from a request that waits to be hashed when the "
        "server stops listening; nothing was created, read or burned",
        {},
        "header `Retry-After`",
    ),
    Row(
        errors.DatabaseUnavailableError,
        "database-unavailable",
        "Database unavailable",
        503,
        "The database does not answer. Whether the request took effect is not known.",
        "the database does not answer; an attempt may have been taken",
        {},
        "header `Retry-After`",
    ),
    Row(
        errors.EnvelopeError,
        "unreadable-secret",
        "Secret can't be opened now",
        503,
        "The server lacks what it needs to open this secret. No attempt was taken.",
        "the server lacks the master key, or the envelope is damaged; no attempt was taken",
        {},
        "header `Retry-After`",
    ),
)
_BY_CLASS = {row.error: row for row in TABLE if not isinstance(row.error, int)}
# What Quart raises in any API: a 403 or 503 of another one's is no wrong passphrase, and no full pool of ours.
_BY_STATUS = {row.error: row for row in TABLE if isinstance(row.error, int)}
# The models that openapi.json has of each status that an operation documents: a name and what it stands for.
_MODELS = {
    400: ("InvalidBodyProblem", "The body is not JSON, or does not fit; in the latter case `errors` says where."),
    403: ("WrongPassphraseProblem", "The passphrase is wrong, and an attempt was taken."),
    404: ("NotFoundProblem", "Nothing is there, or not any more."),
    408: ("TimeoutProblem", "The body did not arrive in time."),
    409: ("AlreadyEndedProblem", "The secret has ended in another way."),
    413: ("TooLargeProblem", "The body is larger than any valid one."),
    415: ("MediaTypeProblem", "The body's content type, charset or content coding is not taken."),
    429: ("TooManyRequestsProblem", "The client's budget is spent. Retry-After says when to come back."),
    503: ("UnavailableProblem", "It can't be done now. Retry-After says when to come back."),
}

# pydantic's error types in words. Its own messages can quote what was sent.
_REASONS = {
    "missing": "is required",
    "extra_forbidden": "an unknown field",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text, without lone surrogates",
    "int_type": "must be a whole number",
}


def _model(status: int) -> type[Problem]:
    """Return the model of the problems that operations answer with one status."""
    name, meaning = _MODELS[status]
    rows = [row for row in TABLE if row.status == status and (row.error not in (400, 404))]
    kinds = tuple(TYPE + row.name for row in rows)
    members = {key: value for row in rows for key, value in row.members.items()}
    fields: dict[str, Any] = {"type": (Literal[kinds], ...), "status": (Literal[status], ...), **members}
    return create_model(name, __base__=Problem, __doc__=meaning, __module__=__name__, **fields)


MODELS = {status: _model(status) for status in _MODELS}


def documented(*statuses: int) -> Callable[[Handler], Handler]:
    """Document the problems that an operation answers with, by their statuses."""

    def document(handler: Handler) -> Handler:
        for status in statuses:
            handler = document_response(MODELS[status], status)(handler)
        return handler

    return document


def body(row: Row, detail: str = "", **members: Any) -> bytes:
    """Return a problem as JSON."""
    base = {"type": TYPE + row.name, "title": row.title, "status": row.status, "detail": detail or row.detail}
    return json.dumps({**base, **members}).encode()


# For what no handler of Quart's answers, see edge.request.
LAST_WORDS = {
    "dropped": (503, body(_BY_CLASS[errors.DrainingError])),
    "unknown": (503, body(_BY_CLASS[errors.DatabaseUnavailableError])),
    "failed": (500, body(_BY_STATUS[500])),
}


def _respond(row: Row, headers: Mapping[str, str], detail: str = "", **members: Any) -> Response:
    return Response(body(row, detail, **members), row.status, dict(headers), content_type=CONTENT_TYPE)


async def answer(error: Exception) -> Response:
    """Answer an error that has a row of its own, or whose base class has one."""
    row = next(_BY_CLASS[kind] for kind in type(error).__mro__ if kind in _BY_CLASS)
    headers: dict[str, str] = {}
    if isinstance(error, errors.UnavailableError):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.DatabaseUnavailableError):
        metrics.DATABASE_ERRORS.inc()
    members = {name: getattr(error, name) for name in row.members}
    return _respond(row, headers, getattr(error, "detail", ""), **members)


async def answer_http_error(error: HTTPException) -> Response:
    """Answer an error of Quart's or an extension's: by its status alone, as its text may quote the request."""
    status = error.code or 500
    phrase = HTTPStatus(status).phrase
    unlisted = Row(status, phrase.lower().replace(" ", "-"), phrase, status, f"{phrase}.", "")
    kept = {key: value for key, value in error.get_headers() if key in ("Allow", "Retry-After")}
    members = {"request_id": request_id()} if status == 500 else {}
    return _respond(_BY_STATUS.get(status, unlisted), kept, **members)


async def answer_rate_limit(error: RateLimitExceeded) -> Response:
    """Answer a client that is over its budget, and count that."""
    metrics.RATE_LIMITED.inc()
    return _respond(_BY_CLASS[RateLimitExceeded], {"Retry-After": str(error.retry_after)})


async def answer_validation_error(error: RequestSchemaValidationError) -> Response:
    """Answer with the fields that are at fault, naming only those that the operation knows."""
    faults: list[Fault] = []
    invalid = cast(ValidationError, error.validation_error)
    for fault in invalid.errors(include_input=False, include_url=False)[:MAX_FAULTS]:
        kind, location = fault["type"], fault["loc"]
        if kind == "value_error":
            reason = str(fault["ctx"]["error"])  # raised in bodies.py, whose words are ours
        elif not location:
            reason = "the body must be a JSON object"
        else:
            reason = _REASONS.get(kind, "is not valid")
        known = location and kind != "extra_forbidden"
        faults.append(Fault(field=str(location[0]) if known else None, reason=reason))
    row = _BY_CLASS[RequestSchemaValidationError]
    return _respond(row, {}, errors=[fault.model_dump() for fault in faults])


def register(blueprint: Blueprint) -> None:
    """Answer every error that can leave a handler of a blueprint with its problem."""
    own: Sequence[type[Exception]] = (errors.RefusedError, errors.UnavailableError)
    for kind in (*own, MalformedBodyError, UnsupportedMediaTypeError):
        blueprint.register_error_handler(kind, answer)
    blueprint.register_error_handler(RequestSchemaValidationError, answer_validation_error)
    blueprint.register_error_handler(RateLimitExceeded, answer_rate_limit)


def init_app(app: Quart) -> None:
    """Answer what no blueprint does: paths and methods that are not there, and faults of the service."""
    app.register_error_handler(HTTPException, answer_http_error)


def table() -> str:
    """Return docs/errors.md's table."""
    rows = ["| status | name | when | also |", "|---|---|---|---|"]
    rows += [f"| {row.status} | `{row.name}` | {row.when} | {row.also} |" for row in TABLE]
    return "\n".join(rows)
