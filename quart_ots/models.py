"""The life of a secret: two documents, and each step one conditional update, won by whoever's matches.

A `Secret` is small and hot, its `Envelope` large and fixed. ``locked`` and ``expired`` are derived, never
written, so that they hold to the second whenever MongoDB's reaper runs.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from beanie import Document, Indexed
from pymongo.errors import OperationFailure, PyMongoError
from quart import current_app

from . import metrics
from .errors import AlreadyEndedError, DatabaseUnavailableError, ReceiptNotFoundError, SecretNotFoundError
from .schemas import State

MAX_ATTEMPTS = 10
# A claim whose answer was cut off is asked for again, this often.
CLAIM_TRIES = 3


class Envelope(Document):
    """A sealed secret. An Envelope without its Secret is reaped by its TTL."""

    id: str  # type: ignore[assignment]  # hex lookup id; Beanie expects an ObjectId, but takes any
    sealed: bytes  # see crypto.seal
    key_id: str  # of the master key, 16 hex digits
    expires_at: Annotated[datetime, Indexed(expireAfterSeconds=0)]  # UTC

    class Settings:
        """Beanie's."""

        name = "envelopes"


class Secret(Document):
    """What may still happen to a secret. Its text is elsewhere, sealed in an Envelope."""

    id: str  # type: ignore[assignment]  # hex lookup id, see crypto.lookup_id
    receipt_id: Annotated[str, Indexed(unique=True)]  # hex, see crypto.receipt_id
    state: Literal["pending", "read", "burned"]
    attempts_left: int
    attempted_at: datetime | None  # UTC, when the last attempt was taken
    claim: str | None  # random, whose reading it was
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    purge_at: Annotated[datetime, Indexed(expireAfterSeconds=0)]

    class Settings:
        """Beanie's."""

        name = "secrets"

    def state_at(self, now: datetime) -> State:
        """Say how the secret stands."""
        return derive_state(self.state, self.attempts_left == 0, self.expires_at <= now)

    def ended_at_by(self, now: datetime) -> datetime | None:
        """Say when the secret ended, None while it is pending."""
        ends = {"locked": self.attempted_at, "expired": self.expires_at}
        return ends.get(self.state_at(now), self.ended_at)


def derive_state(written: Literal["pending", "read", "burned"], spent: bool, over: bool) -> State:
    """Say how a secret stands that has no attempts left, or is past its ttl, or neither. Locked stays locked."""
    if written != "pending":
        return written
    return "locked" if spent else "expired" if over else "pending"


async def create(lookup_id: str, receipt_id: str, sealed: bytes, key_id: str, now: datetime, ttl: int) -> datetime:
    """Keep a sealed secret for ttl seconds from now, and its receipt for as long again; give when it expires."""
    expires_at = now + timedelta(seconds=ttl)
    # Not by Beanie's insert, whose models and hooks cost more than all else here.
    envelope = {"_id": lookup_id, "sealed": sealed, "key_id": key_id, "expires_at": expires_at}
    secret = {
        "_id": lookup_id,
        "receipt_id": receipt_id,
        "state": "pending",
        "attempts_left": MAX_ATTEMPTS,
        "attempted_at": None,
        "claim": None,
        "created_at": now,
        "expires_at": expires_at,
        "ended_at": None,
        "purge_at": now + timedelta(seconds=2 * ttl),
    }
    await metrics.INSERT.measure(Envelope.get_motor_collection().insert_one(envelope))
    await metrics.INSERT.measure(Secret.get_motor_collection().insert_one(secret))
    metrics.SECRETS.labels("created").inc()
    return expires_at


async def fetch_envelope(lookup_id: str, now: datetime) -> bytes:
    """Give the sealed secret; SecretNotFoundError if there is none, or its time is over and the reaper late."""
    waiting = {"_id": lookup_id, "expires_at": {"$gt": now}}
    envelopes = Envelope.get_motor_collection()
    envelope = await metrics.FIND.measure(envelopes.find_one(waiting, {"_id": False, "sealed": True}))
    if envelope is None:
        raise SecretNotFoundError
    return bytes(envelope["sealed"])


async def fetch_waiting(lookup_id: str, now: datetime) -> Secret:
    """Give a secret that can still be read; SecretNotFoundError if there is none."""
    secret = await metrics.FIND.measure(Secret.get(lookup_id))
    if secret is None or secret.state_at(now) != "pending":
        raise SecretNotFoundError
    return secret


async def fetch_receipt(receipt_id: str) -> Secret:
    """Give a secret by its receipt, however it stands; ReceiptNotFoundError if there is none."""
    secret = await metrics.FIND.measure(Secret.find_one({"receipt_id": receipt_id}))
    if secret is None:
        raise ReceiptNotFoundError
    return secret


def _readable(lookup_id: str, now: datetime) -> dict[str, Any]:
    return {"_id": lookup_id, "state": "pending", "expires_at": {"$gt": now}, "attempts_left": {"$gt": 0}}


async def _step(condition: dict[str, Any], update: dict[str, Any]) -> bool:
    """Take a step of a secret's life if it still stands as the condition says; say whether it did."""
    result = await metrics.UPDATE.measure(Secret.get_motor_collection().update_one(condition, update))
    return result.matched_count == 1


async def reserve_attempt(lookup_id: str, now: datetime) -> None:
    """Take an attempt before it is made; SecretNotFoundError if there is none to take."""
    taken = {"$inc": {"attempts_left": -1}, "$set": {"attempted_at": now}}
    if not await _step(_readable(lookup_id, now), taken):
        raise SecretNotFoundError


async def count_failure(lookup_id: str) -> int:
    """Give the attempts left after a wrong one, and delete the envelope with the last."""
    metrics.SECRETS.labels("refused").inc()
    secret = await metrics.FIND.measure(Secret.get(lookup_id))
    attempts_left = secret.attempts_left if secret else 0
    # Several guesses may find that none is left, but one alone still finds the envelope.
    if attempts_left == 0 and await _delete_envelope(lookup_id):
        metrics.SECRETS.labels("locked").inc()
    return attempts_left


async def claim(lookup_id: str, now: datetime) -> None:
    """Make the caller the one reader; SecretNotFoundError if another was faster.

    The claim carries an id of its own. If its answer is cut off, the second condition finds out whether it had been
    made, and waits until a majority has it, so that a lost reply does not lose the secret with it. Nor is the
    driver's own retry trusted to tell: its server may have crashed meanwhile. One update each: a condition with
    ``$or`` makes SecantusDB scan.

    Raises:
        DatabaseUnavailableError: The database was gone for longer than the tries took.

    """
    mine = secrets.token_hex(16)
    taken = {"$set": {"state": "read", "ended_at": now, "claim": mine}}
    for _ in range(CLAIM_TRIES):
        try:
            won = await _step({"_id": lookup_id, "state": "pending"}, taken)
            if not won:
                won = await _step({"_id": lookup_id, "claim": mine}, taken)
        except PyMongoError as error:
            current_app.logger.error("a claim is in doubt: %s", describe(error))
            continue
        if not won:
            raise SecretNotFoundError
        metrics.SECRETS.labels("read").inc()
        await _delete_envelope(lookup_id)
        return
    raise DatabaseUnavailableError


async def burn(receipt_id: str, now: datetime) -> Secret:
    """End a secret unread, and give it as it then stands. Burning it again changes nothing.

    Raises:
        ReceiptNotFoundError: There is no such receipt.
        AlreadyEndedError: It ended in another way.

    """
    secret = await fetch_receipt(receipt_id)
    if await _step(_readable(secret.id, now), {"$set": {"state": "burned", "ended_at": now}}):
        secret.state, secret.ended_at = "burned", now
        metrics.SECRETS.labels("burned").inc()
    else:
        secret = await fetch_receipt(receipt_id)
    if secret.state != "burned":
        raise AlreadyEndedError(secret.state_at(now))
    await _delete_envelope(secret.id)
    return secret


async def _delete_envelope(lookup_id: str) -> bool:
    """Delete what nobody may read any more; say whether it was there.

    If that fails, its TTL does it: no answer waits for it to work.
    """
    try:
        result = await metrics.DELETE.measure(Envelope.get_motor_collection().delete_one({"_id": lookup_id}))
    except PyMongoError as error:
        current_app.logger.warning("an envelope is left to its TTL: %s", describe(error))
        return False
    return result.deleted_count == 1


def describe(error: PyMongoError) -> str:
    """Say what went wrong with the database without its message, which may quote documents."""
    details = (error.details or {}) if isinstance(error, OperationFailure) else {}
    return " ".join([type(error).__name__, *(str(details[name]) for name in ("code", "codeName") if name in details)])
