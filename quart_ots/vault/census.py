"""Counts and mass burning, for the operator: each step looks at a few secrets, however many there are.

A collection is walked in ranges of `_id`, so that no command outlives the driver's time-outs or holds up the service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beanie import Document
from pymongo import UpdateOne

from .. import metrics
from .store import Envelope, Secret, derive_state

# Documents that one command looks at.
RANGE = 10_000
# Documents that one command burns.
BURN_RANGE = 500

Progress = Callable[[int], None]


@dataclass
class KeyUse:
    """What waits under one master key."""

    live: int
    until: datetime  # UTC, when the last of them expires


def no_progress(_: int) -> None:
    """Ignore how many documents were looked at."""


async def count_by_key(now: datetime, progress: Progress = no_progress) -> dict[str, KeyUse]:
    """Count the envelopes that can still be opened, by the id of their master key."""
    uses: dict[str, KeyUse] = {}
    live = {"$gt": ["$expires_at", now]}
    group = {
        "_id": "$key_id",
        "live": {"$sum": {"$cond": [live, 1, 0]}},
        "until": {"$max": "$expires_at"},
    }
    async for row in _walk(Envelope, group, progress):
        if row["live"]:
            use = uses.setdefault(row["_id"], KeyUse(0, row["until"]))
            use.live += row["live"]
            use.until = max(use.until, row["until"])
    return uses


async def count_by_state(now: datetime, progress: Progress = no_progress) -> Counter[str]:
    """Count the secrets that the database still knows of, by how they stand."""
    counts: Counter[str] = Counter(pending=0, read=0, burned=0, locked=0, expired=0)
    group = {
        "_id": {
            "state": "$state",
            "spent": {"$eq": ["$attempts_left", 0]},
            "over": {"$lte": ["$expires_at", now]},
        },
    }
    async for row in _walk(Secret, group, progress):
        found = row["_id"]
        counts[derive_state(found["state"], found["spent"], found["over"])] += row["seen"]
    return counts


async def _walk(kind: type[Document], group: dict[str, Any], progress: Progress) -> AsyncIterator[dict[str, Any]]:
    """Group a collection range by range; yield each range's groups, with `seen`, the number of documents in them."""
    last = ""
    while True:
        rows = await kind.get_motor_collection().aggregate(
            [
                {"$match": {"_id": {"$gt": last}}},
                {"$sort": {"_id": 1}},
                {"$limit": RANGE},
                {"$group": {**group, "seen": {"$sum": 1}, "last": {"$max": "$_id"}}},
            ]
        ).to_list(None)  # fmt: skip
        if not rows:
            return
        last = max(row["last"] for row in rows)
        progress(sum(row["seen"] for row in rows))
        for row in rows:
            yield row


async def estimate_secrets() -> int:
    """Return about how many secrets the database knows of, for a progress bar."""
    return int(await Secret.get_motor_collection().estimated_document_count())


async def estimate_envelopes() -> int:
    """Return about how many envelopes there are."""
    return int(await Envelope.get_motor_collection().estimated_document_count())


def _live(now: datetime, before: datetime) -> dict[str, Any]:
    return {
        "state": "pending",
        "attempts_left": {"$gt": 0},
        "expires_at": {"$gt": now},
        "created_at": {"$lt": before},
    }


async def count_live(now: datetime, before: datetime) -> int:
    """Count the secrets that can still be read and were created before a time."""
    return int(await Secret.get_motor_collection().count_documents(_live(now, before)))


async def burn_all(now: datetime, before: datetime, progress: Progress = no_progress) -> int:
    """Burn every secret that can still be read and was created before a time; return how many were burned.

    A secret that is being read meanwhile is either read or burned, as with a single one: where it is locked or expired,
    that is written, so that no reading under way changes it. Passes are repeated until one burns nothing; a secret
    whose creation is still under way then is not burned.
    """
    secrets, envelopes = Secret.get_motor_collection(), Envelope.get_motor_collection()
    total, burned = 0, 1
    while burned:
        burned, last = 0, ""
        while True:
            condition = {"_id": {"$gt": last}, "state": "pending", "created_at": {"$lt": before}}
            rows = await secrets.find(condition).sort("_id", 1).limit(BURN_RANGE).to_list(None)
            if not rows:
                break
            last = rows[-1]["_id"]
            chosen = {"_id": {"$in": [row["_id"] for row in rows]}, **_live(now, before)}
            result = await secrets.update_many(chosen, {"$set": {"state": "burned", "ended_at": now}})
            over = [row for row in rows if row["attempts_left"] == 0 or row["expires_at"] <= now]
            if over:
                await secrets.bulk_write([_write_end(row) for row in over])
            # Also those of secrets that were read or locked in between.
            await envelopes.delete_many({"_id": {"$in": [row["lookup_id"] for row in rows]}})
            metrics.SECRETS.labels("burned").inc(result.modified_count)
            burned += result.modified_count
            progress(result.modified_count)
        total += burned
    return total


def _write_end(row: dict[str, Any]) -> UpdateOne:
    """Return the update that writes how a pending secret has ended that has no attempts left or is past its ttl."""
    spent = row["attempts_left"] == 0
    ended = {"state": "locked", "ended_at": row["attempted_at"]} if spent else {
        "state": "expired", "ended_at": row["expires_at"]
    }  # fmt: skip
    return UpdateOne({"_id": row["_id"], "state": "pending"}, {"$set": ended})
