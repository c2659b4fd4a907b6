"""What can be done with a secret: five functions, each with its steps in the order that makes "once" true.

Each runs whole, in a task that the end of a request does not cancel. ``gone`` is done once nobody waits for the answer
any more: the client hung up, or the server dropped the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from . import crypto, store
from .errors import (
    ClientGoneError,
    DatabaseUnavailableError,
    EnvelopeError,
    NotOpenedError,
    ReceiptNotFoundError,
    SecretNotFoundError,
    WrongPassphraseError,
)
from .pool import Pool

logger = logging.getLogger("quart_ots")


@dataclass(frozen=True)
class Services:
    """What the functions below work with.

    Args:
        ring: The master keys.
        pool: Where keys are stretched.
        cost: log2 of bcrypt's rounds for new secrets.
        clock: Returns the time in UTC, to the millisecond, which is all that MongoDB keeps.

    """

    ring: crypto.KeyRing
    pool: Pool
    cost: int
    clock: Callable[[], datetime]


class Created(NamedTuple):
    """What the creator of a secret gets."""

    secret_key: str
    receipt_key: str
    expires_at: datetime


class Pending(NamedTuple):
    """What can be known of a secret that waits."""

    expires_at: datetime
    attempts_left: int


class Receipt(NamedTuple):
    """What became of a secret. `ended_at` is None while it is pending."""

    state: store.State
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    attempts_left: int


def utc_now() -> datetime:
    """Return the time in UTC, to the millisecond."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


async def create(services: Services, secret: str, passphrase: str, ttl: int, gone: asyncio.Future[None]) -> Created:
    """Seal a secret, store it, and return the two keys, of which nothing but hashes is kept.

    Raises:
        UnavailableError: Nothing was stored that anyone has a key to.

    """
    secret_key, receipt_key = crypto.new_key(), crypto.new_key()
    async with services.pool.slot(gone):
        sealed = await services.pool.run(crypto.seal, services.ring, secret_key, passphrase, secret, services.cost)
    if gone.done():
        raise ClientGoneError
    lookup_id, receipt_id, key_id = crypto.lookup_id(secret_key), crypto.receipt_id(receipt_key), services.ring.ids[0]
    expires_at = await store.create(lookup_id, receipt_id, sealed, key_id, services.clock(), ttl)
    return Created(secret_key, receipt_key, expires_at)


async def read(services: Services, secret_key: str, passphrase: str, gone: asyncio.Future[None]) -> str:
    """Return a secret to the one reader who claims it, and to nobody after.

    A slot comes before the attempt, so that a request that waits for one holds nothing. The attempt comes before the
    hash, so that guesses in parallel count each. The claim comes before the answer, so that one reader alone gets it,
    and only while somebody waits for that answer: a client that hangs up loses neither the secret nor, with the right
    passphrase, an attempt.

    Raises:
        SecretNotFoundError: No such secret, or it has been read, burned, locked or has expired.
        WrongPassphraseError: An attempt was taken.
        EnvelopeError: The server cannot open it; no attempt was taken.
        UnavailableError: Not now. An attempt may have been taken.

    """
    lookup_id = _lookup_id(secret_key)
    secret_id, sealed = await store.fetch_sealed(lookup_id, services.clock())
    try:
        crypto.parse(sealed, services.ring)
    except EnvelopeError as error:
        logger.error("a secret cannot be opened: %s", error)
        raise
    secret = None
    async with services.pool.slot(gone):
        try:
            await store.reserve_attempt(secret_id, services.clock())
        except DatabaseUnavailableError:
            # Those in line would wait for the same, one after the other.
            services.pool.dismiss(DatabaseUnavailableError)
            raise
        with contextlib.suppress(NotOpenedError):
            secret = await services.pool.run(crypto.open, services.ring, secret_key, passphrase, sealed)
    if secret is None:
        raise WrongPassphraseError(await store.count_failure(secret_id, lookup_id))
    if gone.done():
        await store.return_attempt(secret_id)
        raise ClientGoneError
    await store.claim(secret_id, secrets.token_hex(16), services.clock(), gone)
    await store.delete_envelope(lookup_id)
    return secret


async def look(services: Services, secret_key: str) -> Pending:
    """Return what can be known of a secret without its passphrase; SecretNotFoundError unless it waits to be read."""
    secret = await store.fetch_pending(_lookup_id(secret_key), services.clock())
    return Pending(secret.expires_at, secret.attempts_left)


async def receipt(services: Services, receipt_key: str) -> Receipt:
    """Return what became of a secret; ReceiptNotFoundError if no receipt is kept under this key."""
    now = services.clock()
    return _receipt(await store.fetch_receipt(_receipt_id(receipt_key)), now)


async def burn(services: Services, receipt_key: str) -> Receipt:
    """End a secret unread, and return its receipt. Burning it again returns the same.

    Raises:
        ReceiptNotFoundError: No receipt is kept under this key.
        AlreadyEndedError: The secret ended in another way, which no reading under way can change any more.

    """
    now = services.clock()
    return _receipt(await store.burn(_receipt_id(receipt_key), now), now)


def _lookup_id(secret_key: str) -> str:
    if not crypto.is_key(secret_key):
        raise SecretNotFoundError
    return crypto.lookup_id(secret_key)


def _receipt_id(receipt_key: str) -> str:
    if not crypto.is_key(receipt_key):
        raise ReceiptNotFoundError
    return crypto.receipt_id(receipt_key)


def _receipt(secret: store.Secret, now: datetime) -> Receipt:
    return Receipt(
        secret.state_at(now), secret.created_at, secret.expires_at, secret.ended_at_by(now), secret.attempts_left
    )
