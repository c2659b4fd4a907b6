"""The bodies of errors, as openapi.json describes them. errors.py builds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class Fault(BaseModel):
    """What is wrong with one field."""

    field: str | None = Field(description="Null for the body itself, or a field that the operation does not know.")
    reason: str


class InvalidBodyProblem(Problem):
    """The body is not JSON, or does not fit; in the latter case `errors` says where."""

    type: Literal["urn:quart-ots:problem:invalid-body", "urn:quart-ots:problem:malformed-body"]
    status: Literal[400]
    errors: list[Fault] = Field(default=[])


class WrongPassphraseProblem(Problem):
    """The passphrase is wrong, and an attempt was taken."""

    type: Literal["urn:quart-ots:problem:wrong-passphrase"]
    status: Literal[403]
    attempts_left: Annotated[int, Field(ge=0, le=9)]


class NotFoundProblem(Problem):
    """Nothing is there, or not any more."""

    type: Literal["urn:quart-ots:problem:secret-not-found", "urn:quart-ots:problem:receipt-not-found"]
    status: Literal[404]


class TimeoutProblem(Problem):
    """The body did not arrive in time."""

    type: Literal["urn:quart-ots:problem:request-timeout"]
    status: Literal[408]


class AlreadyEndedProblem(Problem):
    """The secret has ended in another way."""

    type: Literal["urn:quart-ots:problem:already-ended"]
    status: Literal[409]
    state: Literal["read", "locked", "expired"]


class TooLargeProblem(Problem):
    """The body is larger than any valid one."""

    type: Literal["urn:quart-ots:problem:body-too-large"]
    status: Literal[413]


class MediaTypeProblem(Problem):
    """The body's content type, charset or content coding is not taken."""

    type: Literal["urn:quart-ots:problem:unsupported-media-type"]
    status: Literal[415]


class TooManyRequestsProblem(Problem):
    """The client's budget is spent. Retry-After says when to come back."""

    type: Literal["urn:quart-ots:problem:too-many-requests"]
    status: Literal[429]


class UnavailableProblem(Problem):
    """It can't be done now. Retry-After says when to come back."""

    type: Literal[
        "urn:quart-ots:problem:database-unavailable",
        "urn:quart-ots:problem:busy",
        "urn:quart-ots:problem:draining",
        "urn:quart-ots:problem:unreadable-secret",
    ]
    status: Literal[503]
