"""What a client can be told went wrong, as problem+json (RFC 9457).

ApiError                         never raised itself
├── MalformedBodyError           400  not JSON as RFC 8259 and 7493 have it
├── InvalidBodyError             400  says which fields, and why
├── WrongPassphraseError         403  says how many attempts are left
├── SecretNotFoundError          404  unknown, read, burned, locked or expired: untold which
├── ReceiptNotFoundError         404
├── AlreadyEndedError            409  says how the secret ended
├── UnsupportedMediaTypeError    415  says what was expected
└── UnavailableError             503  says when to come back
    ├── BusyError                     the KDF pool is full
    ├── DrainingError                 the server is being stopped
    ├── DatabaseUnavailableError
    └── UnreadableError               the envelope is damaged, or its master key is missing

Quart's own errors (404 and 405 of the routing, 408, 413, 429, 500) get the same shape by their status.
Nothing here ever repeats what was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, cast

from pydantic import ValidationError
from quart import Quart, Response, current_app
from quart_rate_limiter import RateLimitExceeded
from quart_schema import RequestSchemaValidationError
from werkzeug.exceptions import HTTPException

from . import crypto, metrics
from .observe import request_id

# A body of unknown fields would be answered at four times its length otherwise.
MAX_FAULTS = 20


class ApiError(Exception):
    """Base of every error that is sent to the client as problem+json."""

    status: int
    name: str  # the last part of the problem's type
    title: str  # the same for every occurrence
    detail: str
    headers: Mapping[str, str] = MappingProxyType({})

    def members(self) -> dict[str, Any]:
        """Give what this kind of problem says beyond the members of RFC 9457."""
        return {}


class MalformedBodyError(ApiError):
    """The body is not JSON as RFC 8259 has it, in UTF-8, each name once."""

    status, name, title = 400, "malformed-body", "Malformed body"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidBodyError(ApiError):
    """The body is JSON, but not what the operation takes.

    Args:
        errors: A pair for each fault: the field, None where its name is the client's, and the reason.

    """

    status, name, title = 400, "invalid-body", "Invalid body"
    detail = "The body does not fit the operation. Nothing was stored, read or counted."

    def __init__(self, errors: Sequence[tuple[str | None, str]]) -> None:
        super().__init__()
        self._errors = errors

    def members(self) -> dict[str, Any]:
        """Give the faults."""
        return {"errors": [{"field": field, "reason": reason} for field, reason in self._errors[:MAX_FAULTS]]}


class WrongPassphraseError(ApiError):
    """The secret is there, the passphrase is not its own.

    Args:
        attempts_left: 0 to 9, at the time of the answer.

    """

    status, name, title = 403, "wrong-passphrase", "Wrong passphrase"
    detail = "The passphrase does not open this secret. With no attempts left it is locked for good."

    def __init__(self, attempts_left: int) -> None:
        super().__init__()
        self.attempts_left = attempts_left

    def members(self) -> dict[str, Any]:
        """Give the attempts left."""
        return {"attempts_left": self.attempts_left}


class SecretNotFoundError(ApiError):
    """No secret waits under this key. Why stays untold."""

    status, name, title = 404, "secret-not-found", "Secret not found"
    detail = "It never existed, or it has been read, burned, locked or has expired."


class ReceiptNotFoundError(ApiError):
    """No receipt is kept under this key."""

    status, name, title = 404, "receipt-not-found", "Receipt not found"
    detail = "It never existed, or it has outlived its secret by as long as the secret was to live."


class AlreadyEndedError(ApiError):
    """A secret that has ended can't be burned.

    Args:
        state: How it ended: read, locked or expired.

    """

    status, name, title = 409, "already-ended", "Secret has already ended"
    detail = "Only a secret that waits to be read can be burned."

    def __init__(self, state: str) -> None:
        super().__init__()
        self.state = state

    def members(self) -> dict[str, Any]:
        """Give the state it ended in."""
        return {"state": self.state}


class UnsupportedMediaTypeError(ApiError):
    """The body's content type, charset or content coding is not taken."""

    status, name, title = 415, "unsupported-media-type", "Unsupported media type"
    detail = "Send JSON in UTF-8 as Content-Type: application/json, with no Content-Encoding."


class UnavailableError(ApiError):
    """It can't be done now; later it may.

    Args:
        retry_after: Whole seconds after which it is worth another try.

    """

    status = 503

    def __init__(self, retry_after: int = 2) -> None:
        super().__init__()
        self.headers = {"Retry-After": str(retry_after)}


class BusyError(UnavailableError):
    """The KDF pool and its queue are full. Retry-After estimates when what is in them will be done."""

    name, title = "busy", "Busy"
    detail = "Too many secrets are being sealed and opened at once. No attempt was taken."


class DrainingError(UnavailableError):
    """The server has been told to stop, and should get no new work."""

    name, title = "draining", "Draining"
    detail = "This server is being stopped. It answers what it is asked, but another should be asked."


class DatabaseUnavailableError(UnavailableError):
    """The database did not answer, or not in time."""

    name, title = "database-unavailable", "Database unavailable"
    detail = "The database does not answer. Whether the request took effect is not known."


class UnreadableError(UnavailableError):
    """The secret waits, but this server can't open it."""

    name, title = "unreadable-secret", "Secret can't be opened now"
    detail = "The server lacks what it needs to open this secret. No attempt was taken."


# Statuses that Quart and its extensions raise by themselves: name, title, detail.
_HTTP = {
    400: ("bad-request", "Bad request", "The request is not one that the service understands."),
    404: ("not-found", "Not found", "Nothing is served here."),
    405: ("method-not-allowed", "Method not allowed", "The Allow header lists what can be done here."),
    408: ("request-timeout", "Request timeout", "The body did not arrive in time."),
    413: ("body-too-large", "Body too large", "The body is larger than any valid one."),
    429: ("too-many-requests", "Too many requests", "Wait for as many seconds as the Retry-After header says."),
    500: ("internal-error", "Internal error", "The service is at fault. Its log has more under the request_id."),
}

# pydantic's error types in words. Its own messages can quote what was sent.
_REASONS = {
    "missing": "is required",
    "extra_forbidden": "an unknown field",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text, without lone surrogates",
    "int_type": "must be a whole number",
}


def problem(
    status: int, name: str, title: str, detail: str, members: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    """Build an answer of RFC 9457: type, title, status, detail, and the members of its own kind."""
    body = {"type": f"urn:quart-ots:problem:{name}", "title": title, "status": status, "detail": detail, **members}
    return Response(json.dumps(body), status, dict(headers), content_type="application/problem+json")


async def answer_api_error(error: ApiError) -> Response:
    """Answer an error of our own."""
    return problem(error.status, error.name, error.title, error.detail, error.members(), error.headers)


async def answer_http_error(error: HTTPException) -> Response:
    """Answer an error of Quart's or an extension's: by its status alone, as its text may quote the request."""
    status = error.code or 500
    phrase = HTTPStatus(status).phrase
    name, title, detail = _HTTP.get(status, (phrase.lower().replace(" ", "-"), phrase, f"{phrase}."))
    kept = {key: value for key, value in error.get_headers() if key in ("Allow", "Retry-After")}
    members = {"request_id": request_id()} if status == 500 else {}
    return problem(status, name, title, detail, members, kept)


async def answer_rate_limit(error: RateLimitExceeded) -> Response:
    """Answer a client that is over its budget, and count that."""
    metrics.RATE_LIMITED.inc()
    return await answer_http_error(error)


async def answer_validation_error(error: RequestSchemaValidationError) -> Response:
    """Answer with the fields that are at fault, naming only those that the operation knows."""
    faults: list[tuple[str | None, str]] = []
    invalid = cast(ValidationError, error.validation_error)
    for fault in invalid.errors(include_input=False, include_url=False):
        kind, location = fault["type"], fault["loc"]
        if kind == "value_error":
            reason = str(fault["ctx"]["error"])  # raised in schemas.py, whose words are ours
        elif not location:
            reason = "the body must be a JSON object"
        else:
            reason = _REASONS.get(kind, "is not valid")
        faults.append((str(location[0]) if location and kind != "extra_forbidden" else None, reason))
    return await answer_api_error(InvalidBodyError(faults))


async def answer_envelope_error(error: crypto.EnvelopeError) -> Response:
    """Tell the operator which master key is missed, and the client to come back."""
    current_app.logger.error("a secret can't be opened: %s", error)
    return await answer_api_error(UnreadableError())


def init_app(app: Quart) -> None:
    """Give every error that can leave a handler the shape of RFC 9457."""
    app.register_error_handler(ApiError, answer_api_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(RateLimitExceeded, answer_rate_limit)
    app.register_error_handler(RequestSchemaValidationError, answer_validation_error)
    app.register_error_handler(crypto.EnvelopeError, answer_envelope_error)
