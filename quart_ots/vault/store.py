"""Two documents, and each step of a secret's life as one conditional update, won by the caller whose condition holds.

A `Secret` is small and hot, its `Envelope` large and fixed. A reader comes by the Envelope, which names its Secret; a
creator comes by the receipt, which is the Secret's own id: every command names an ``_id``. ``locked`` and ``expired``
are derived from what stands, so that they hold to the second whenever MongoDB's reaper runs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from beanie import Document, Indexed
from beanie.exceptions import CollectionWasNotInitialized
from pymongo.errors import OperationFailure, PyMongoError

from .. import metrics
from .errors import (
    AlreadyEndedError,
    ClientGoneError,
    DatabaseUnavailableError,
    ReceiptNotFoundError,
    SecretNotFoundError,
)

T = TypeVar("T")
State = Literal["pending", "read", "burned", "locked", "expired"]

MAX_ATTEMPTS = 10
# A claim whose reply was lost is asked for again, this often, after as many seconds.
CLAIM_TRIES = 3
CLAIM_PAUSE = 0.5
# A receipt is kept for twice its secret's ttl, and for this much longer than the secret at the least.
RECEIPT_OUTLIVES = timedelta(days=1)
# Seconds for one command: its wait for a thread and a connection of the driver's, and the driver's own retries.
DEADLINE = 5
# The same for deleting an envelope that nobody may read any more: a reader waits for the answer meanwhile.
DELETE_DEADLINE = 1

# What a driver's thread that cannot run raises: "can't start new thread", "cannot schedule new futures after shutdown".
_NO_THREAD = re.compile("new thread|new futures")

logger = logging.getLogger("quart_ots")


class Envelope(Document):
    """A sealed secret. An Envelope without its Secret is reaped by its TTL."""

    id: str  # type: ignore[assignment]  # hex lookup id; Beanie expects an ObjectId, but takes any
    secret_id: str  # its Secret's id
    sealed: bytes  # see crypto.seal
    key_id: str  # of the master key, 16 hex digits
    expires_at: Annotated[datetime, Indexed(expireAfterSeconds=0)]  # UTC

    class Settings:
        """Beanie's."""

        name = "envelopes"


class Secret(Document):
    """What may still happen to a secret. Its text is elsewhere, sealed in an Envelope."""

    id: str  # type: ignore[assignment]  # hex receipt id, see crypto.receipt_id
    lookup_id: str  # its Envelope's id
    state: State  # `locked` and `expired` are written only where a burn came too late
    attempts_left: int
    attempted_at: datetime | None  # UTC, when the last attempt was taken
    claim: str | None  # random hex, whose reading it was
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    purge_at: Annotated[datetime, Indexed(expireAfterSeconds=0)]

    class Settings:
        """Beanie's."""

        name = "secrets"

    def state_at(self, now: datetime) -> State:
        """Return the state at a time."""
        return derive_state(self.state, self.attempts_left == 0, self.expires_at <= now)

    def ended_at_by(self, now: datetime) -> datetime | None:
        """Return when the secret ended, None while it is pending."""
        derived = {"locked": self.attempted_at, "expired": self.expires_at}
        return self.ended_at or derived.get(self.state_at(now))


class Sealed(NamedTuple):
    """An Envelope as a reader needs it."""

    secret_id: str
    sealed: bytes


def derive_state(written: State, spent: bool, over: bool) -> State:
    """Return the state of a secret that has no attempts left, or is past its ttl, or neither; locked beats expired."""
    if written != "pending":
        return written
    return "locked" if spent else "expired" if over else "pending"


def describe(error: BaseException) -> str:
    """Return what went wrong with the database, without the driver's message, which may quote documents."""
    details = (error.details or {}) if isinstance(error, OperationFailure) else {}
    return " ".join([type(error).__name__, *(str(details[name]) for name in ("code", "codeName") if name in details)])


async def _run(command: metrics.Command, start: Callable[[], Awaitable[T]], deadline: float = DEADLINE) -> T:
    """Run one command within a deadline in seconds; DatabaseUnavailableError if the database fails."""
    try:
        async with asyncio.timeout(deadline):
            return await command.measure(start())
    # A collection is not initialised until the database has been reached once.
    except (PyMongoError, TimeoutError, CollectionWasNotInitialized, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _NO_THREAD.search(str(error)):
            raise
        logger.error("the database failed: %s", describe(error))
        raise DatabaseUnavailableError from None


async def _step(condition: dict[str, Any], update: dict[str, Any]) -> bool:
    """Take a step of a secret's life if the condition, which names its _id, holds; return whether it did."""
    result = await _run(metrics.UPDATE, lambda: Secret.get_motor_collection().update_one(condition, update))
    return bool(result.matched_count)


def _readable(secret_id: str, now: datetime) -> dict[str, Any]:
    return {"_id": secret_id, "state": "pending", "expires_at": {"$gt": now}, "attempts_left": {"$gt": 0}}


async def create(lookup_id: str, receipt_id: str, sealed: bytes, key_id: str, now: datetime, ttl: int) -> datetime:
    """Store a sealed secret for ttl seconds from now, and its receipt for longer; return when the secret expires.

    The Envelope comes first: alone it is of no use, and its TTL removes it.
    """
    expires_at = now + timedelta(seconds=ttl)
    # Plain documents: Beanie's insert, with its models and hooks, costs more than all else here.
    envelope = {
        "_id": lookup_id,
        "secret_id": receipt_id,
        "sealed": sealed,
        "key_id": key_id,
        "expires_at": expires_at,
    }
    secret = {
        "_id": receipt_id,
        "lookup_id": lookup_id,
        "state": "pending",
        "attempts_left": MAX_ATTEMPTS,
        "attempted_at": None,
        "claim": None,
        "created_at": now,
        "expires_at": expires_at,
        "ended_at": None,
        "purge_at": now + max(timedelta(seconds=2 * ttl), timedelta(seconds=ttl) + RECEIPT_OUTLIVES),
    }
    await _run(metrics.INSERT, lambda: Envelope.get_motor_collection().insert_one(envelope))
    await _run(metrics.INSERT, lambda: Secret.get_motor_collection().insert_one(secret))
    metrics.SECRETS.labels("created").inc()
    return expires_at


async def fetch_sealed(lookup_id: str, now: datetime) -> Sealed:
    """Return a sealed secret; SecretNotFoundError if there is none, or it has expired and the reaper is late."""
    waiting = {"_id": lookup_id, "expires_at": {"$gt": now}}
    found = await _run(metrics.FIND, lambda: Envelope.get_motor_collection().find_one(waiting))
    if found is None:
        raise SecretNotFoundError
    return Sealed(found["secret_id"], bytes(found["sealed"]))


async def fetch_pending(lookup_id: str, now: datetime) -> Secret:
    """Return a secret that can still be read; SecretNotFoundError if there is none."""
    names = ["secret_id"]
    envelope = await _run(metrics.FIND, lambda: Envelope.get_motor_collection().find_one({"_id": lookup_id}, names))
    secret = await _find(envelope["secret_id"]) if envelope else None
    if secret is None or secret.state_at(now) != "pending":
        raise SecretNotFoundError
    return secret


async def fetch_receipt(receipt_id: str) -> Secret:
    """Return a secret in whatever state; ReceiptNotFoundError if there is none."""
    secret = await _find(receipt_id)
    if secret is None:
        raise ReceiptNotFoundError
    return secret


async def _find(secret_id: str) -> Secret | None:
    return await _run(metrics.FIND, lambda: Secret.get(secret_id))


async def reserve_attempt(secret_id: str, now: datetime) -> None:
    """Take an attempt before it is made; SecretNotFoundError if there is none to take."""
    taken = {"$inc": {"attempts_left": -1}, "$set": {"attempted_at": now}}
    if not await _step(_readable(secret_id, now), taken):
        raise SecretNotFoundError


async def count_failure(secret_id: str, lookup_id: str) -> int:
    """Return the attempts left after a wrong one; delete the envelope after the last."""
    metrics.SECRETS.labels("refused").inc()
    secret = await _find(secret_id)
    attempts_left = secret.attempts_left if secret else 0
    # Several guesses may find that none is left, but one alone still finds the envelope.
    if attempts_left == 0 and await delete_envelope(lookup_id):
        metrics.SECRETS.labels("locked").inc()
    return attempts_left


async def return_attempt(secret_id: str) -> None:
    """Give back an attempt whose passphrase was right, but whose client is gone; not the last one.

    After the last attempt the secret counts as locked, and another failure may have deleted its envelope.
    """
    await _step({"_id": secret_id, "state": "pending", "attempts_left": {"$gt": 0}}, {"$inc": {"attempts_left": 1}})


async def claim(secret_id: str, claim_id: str, now: datetime, gone: asyncio.Future[None]) -> None:
    """Make the caller the one reader. Neither expiry nor attempts count any more: both were checked with the attempt.

    A reply that is lost on the way leaves the claim in doubt. A second update settles it: it matches only where this
    very claim was made, and waits until a majority of the database has it. The driver's own retry is not enough: the
    server may have crashed in between and have forgotten that it knows the command.

    Args:
        secret_id: The Secret's id.
        claim_id: Names this claim among all others.
        now: UTC, the time at which the secret is read.
        gone: Done when nobody waits for the answer any more: a claim in doubt is still settled, but not made anew, and
            one that is still on its way is denied.

    Raises:
        SecretNotFoundError: Another reader or a burn was faster.
        ClientGoneError: `gone` was done before a claim could be made.
        DatabaseUnavailableError: The claim is still in doubt after CLAIM_TRIES.

    """
    pending = {"_id": secret_id, "state": "pending", "denied": {"$ne": claim_id}}
    mine = {"_id": secret_id, "claim": claim_id}
    taken = {"$set": {"state": "read", "ended_at": now, "claim": claim_id}}
    for number in range(CLAIM_TRIES):
        if number:
            await asyncio.sleep(CLAIM_PAUSE)
        try:
            if gone.done():
                if not await _step(mine, taken):
                    await _step(pending, {"$addToSet": {"denied": claim_id}})
                    raise ClientGoneError
            elif not await _step(pending, taken) and not await _step(mine, taken):
                raise SecretNotFoundError
        except DatabaseUnavailableError:
            logger.error("a claim is in doubt")
            continue
        metrics.SECRETS.labels("read").inc()
        return
    raise DatabaseUnavailableError


async def burn(secret_id: str, now: datetime) -> Secret:
    """End a secret unread and return it. Burning it again changes nothing.

    Where it is locked or expired, that is written: no reading that is under way can change what the caller is told.

    Raises:
        ReceiptNotFoundError: There is no such secret.
        AlreadyEndedError: It ended in another way.

    """
    burned = await _step(_readable(secret_id, now), {"$set": {"state": "burned", "ended_at": now}})
    if burned:
        metrics.SECRETS.labels("burned").inc()
    secret = await fetch_receipt(secret_id)
    if secret.state == "pending":
        ended = {"state": secret.state_at(now), "ended_at": secret.ended_at_by(now)}
        if not await _step({"_id": secret_id, "state": "pending"}, {"$set": ended}):
            secret = await fetch_receipt(secret_id)  # it was read or burned meanwhile
    await delete_envelope(secret.lookup_id)
    if secret.state != "burned":
        raise AlreadyEndedError(secret.state_at(now))
    return secret


async def delete_envelope(lookup_id: str) -> bool:
    """Delete what nobody may read any more; return whether it was there.

    If that fails, its TTL does it: no answer depends on it.
    """
    try:
        result = await _run(
            metrics.DELETE, lambda: Envelope.get_motor_collection().delete_one({"_id": lookup_id}), DELETE_DEADLINE
        )
    except DatabaseUnavailableError:
        logger.warning("an envelope is left to its TTL")
        return False
    return bool(result.deleted_count)
