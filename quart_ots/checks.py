"""What is looked at when the service starts, each told in one line of the log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from .census import count_by_key
from .crypto import KeyRing

OLDEST = (6, 0)
# Seconds. The service judges expiry by its own clock, the database's reaper by its own; more apart, and one of them
# is wrong: a secret could be reaped before its time, or services could disagree on which have expired.
MAX_SKEW = 5

Line = tuple[int, str]  # its level, see logging


class OldDatabaseError(Exception):
    """The database is older than any that this service keeps its promises on."""


async def look_over_server(client: AsyncIOMotorClient[dict[str, Any]]) -> list[Line]:
    """Check the database's version and clock; PyMongoError if it does not answer, OldDatabaseError if it is too old."""
    version = (await client.admin.command("buildInfo"))["version"]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise OldDatabaseError(f"it is version {version}, and {OLDEST[0]}.{OLDEST[1]} or newer is needed")
    sent = datetime.now(UTC)
    hello = await client.admin.command("hello")
    received = datetime.now(UTC)
    if "setName" in hello:
        kind = f"replica set {hello['setName']}"
    else:
        kind = "sharded" if hello.get("msg") == "isdbgrid" else "standalone"
    theirs = hello["localTime"].replace(tzinfo=UTC)
    return [(logging.INFO, f"database: version {version}, {kind}"), tell_skew(theirs, sent, received)]


def tell_skew(theirs: datetime, sent: datetime, received: datetime) -> Line:
    """Compare the database's clock with ours, which showed one time when it was asked and another when it answered."""
    ahead = (theirs - sent - (received - sent) / 2).total_seconds()
    line = f"clock: the database's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) <= MAX_SKEW:
        return logging.INFO, line
    return logging.WARNING, f"{line}: secrets may expire too early or too late; set the clocks"


async def look_over_keys(ring: KeyRing) -> list[Line]:
    """Count the envelopes that wait under keys the ring lacks."""
    uses = await count_by_key(datetime.now(UTC))
    missing = [
        (logging.WARNING, f"{use.live} secrets wait under master key {id_}, which the ring lacks")
        for id_, use in uses.items()
        if id_ not in ring.ids
    ]
    return missing or [(logging.INFO, f"master keys: {', '.join(ring.ids)} open every envelope")]
