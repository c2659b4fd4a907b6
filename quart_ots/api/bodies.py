"""What clients send and get: bodies and their bounds."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, SecretStr, WithJsonSchema

from ..vault.store import State

MAX_SECRET_BYTES = 64 * 1024
MAX_PASSPHRASE_BYTES = 1024
# JSON's worst case is six bytes for one, as in \u0000; what is left over is for names and white space.
MAX_BODY_BYTES = 6 * (MAX_SECRET_BYTES + MAX_PASSPHRASE_BYTES) + 4096
MIN_TTL = 60
DEFAULT_TTL = 604_800  # 7 days
MAX_TTL = 2_592_000  # 30 days


def _at_most(limit: int) -> AfterValidator:
    """Bound a text by its UTF-8 bytes, 1 to limit; pydantic counts characters."""

    def check(value: SecretStr) -> SecretStr:
        if not 1 <= len(value.get_secret_value().encode()) <= limit:
            raise ValueError(f"must be 1 to {limit:,} bytes long in UTF-8")
        return value

    return AfterValidator(check)


def _within(low: int, high: int) -> AfterValidator:
    """Bound a number, both ends included."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"must be {low:,} to {high:,}")
        return value

    return AfterValidator(check)


def rfc3339(time: datetime) -> str:
    """Return a UTC time as RFC 3339 has it, to the millisecond, ending in Z."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(limit: int, **schema: Any) -> WithJsonSchema:
    """Describe a text by its characters, all that JSON Schema can count; the bytes are in its description."""
    return WithJsonSchema({"type": "string", "minLength": 1, "maxLength": limit, **schema})


Passphrase = Annotated[
    SecretStr,
    _at_most(MAX_PASSPHRASE_BYTES),
    _text(
        MAX_PASSPHRASE_BYTES,
        description="1 to 1,024 bytes of UTF-8. Compared after Unicode NFC.",
        examples=["correct horse battery staple"],
    ),
]
Plaintext = Annotated[
    SecretStr,
    _at_most(MAX_SECRET_BYTES),
    _text(
        MAX_SECRET_BYTES,
        description="1 to 65,536 bytes of UTF-8, given back to the byte.",
        examples=["The treasure is under the third palm."],
    ),
]
Ttl = Annotated[
    int,
    _within(MIN_TTL, MAX_TTL),
    WithJsonSchema(
        {
            "type": "integer",
            "minimum": MIN_TTL,
            "maximum": MAX_TTL,
            "default": DEFAULT_TTL,
            "description": "Seconds until the secret expires, if nobody reads it.",
            "examples": [3600],
        }
    ),
]
Time = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2027-01-31T12:00:00.000Z"]}),
]
Key = Annotated[str, Field(pattern="^[A-Za-z0-9]{43}$")]
AttemptsLeft = Annotated[int, Field(ge=0, le=10)]


class _Body(BaseModel):
    """A request body: no field converted, none unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class GenerateRequest(_Body):
    """A secret to keep, and the passphrase that will open it."""

    secret: Plaintext
    passphrase: Passphrase
    ttl: Ttl = DEFAULT_TTL


class ReadRequest(_Body):
    """The passphrase that the secret was created with."""

    passphrase: Passphrase


class GenerateResponse(BaseModel):
    """The secret is kept. Its keys are shown this once: the service does not keep them."""

    secret_key: Key = Field(description="For the reader: POST /secrets/{secret_key}.")
    receipt_key: Key = Field(description="For the creator: see what became of the secret, or burn it.")
    expires_at: Time


class ReadResponse(BaseModel):
    """The secret. It is gone from the service."""

    secret: str


class WaitingResponse(BaseModel):
    """The secret waits to be read."""

    expires_at: Time
    attempts_left: AttemptsLeft


class ReceiptResponse(BaseModel):
    """What became of a secret."""

    state: State
    created_at: Time
    expires_at: Time
    ended_at: Time | None = Field(description="Null while the secret is pending.")
    attempts_left: AttemptsLeft


class HealthResponse(BaseModel):
    """The service is well."""

    status: Literal["ok"] = "ok"
