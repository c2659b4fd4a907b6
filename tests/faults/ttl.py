"""The database's own reaper against readers: expiry is right to the moment, whenever the reaper comes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from quart_ots.vault.crypto import receipt_id
from tests.faults.api import Answer, Api, connected
from tests.faults.finding import Finding
from tests.faults.stage import Stage, lent, staged
from tests.mongod import DATABASE, Client, Mongod, wait_for

# mongod's monitor looks each minute unless told otherwise.
EACH_SECOND = ("--setParameter", "ttlMonitorSleepSecs=1")
# Seconds from the beginning of a round until the first of its secrets expires, and until the last has.
FIRST, LAST = 1.0, 3.0
# Seconds between a reading and the expiry, at most.
NEAR = 0.05


async def reaper(rounds: int = 20, together: int = 50, seed: int = 1, on: Stage[Mongod] | None = None) -> Finding:
    """Read secrets around the moment of their expiry while the reaper removes them."""
    finding = Finding(
        "a secret is read before its expiry alone, and its receipt tells how it ended, before and after it is reaped",
        "mongod's TTL monitor each second, readers around the moment of expiry over two processes; a trial is a secret",
        rounds * together,
    )
    seen: Counter[str] = Counter()
    chance = random.Random(seed)
    ids: list[str] = []
    ours = {"_id": {"$in": ids}}
    with lent(on, staged(2, *EACH_SECOND)) as stage, Client(stage.database.url, tz_aware=True) as client:
        database = client[DATABASE]
        async with connected(*stage.services, kept=True) as api:
            waiting = (await api.generate("a secret that waits")).body
            for _ in range(rounds):
                answers = await asyncio.gather(*(api.generate("s", ttl=60) for _ in range(together)))
                created = [answer.body for answer in answers]
                ids += [receipt_id(keys["receipt_key"]) for keys in created]
                begun = datetime.now(UTC)
                # An envelope whose creation was broken off, and one whose reader has crashed, have no other end.
                database.envelopes.insert_one({"_id": "alone", "expires_at": begun})
                reading = []
                for keys in created:
                    moment = begun + timedelta(milliseconds=round(1000 * chance.uniform(FIRST, LAST)))
                    bring_forward(database, keys["receipt_key"], moment)
                    reading.append(read_at(api, keys, moment + timedelta(seconds=chance.uniform(-NEAR, NEAR))))
                outcomes = await asyncio.gather(*reading)
                over = {"expires_at": {"$lte": datetime.now(UTC)}}
                wait_for(lambda: database.envelopes.count_documents(over) == 0)  # noqa: B023  # called at once
                for keys, (asked, answered, read) in zip(created, outcomes, strict=True):
                    receipt = (await api.receipt(keys["receipt_key"])).body
                    expires_at = datetime.fromisoformat(receipt["expires_at"])
                    outcome = (read.status, receipt["state"])
                    finding.expect(outcome in ((200, "read"), (404, "expired")), f"outcome {outcome}")
                    finding.expect(asked < expires_at or read.status == 404, "read after its expiry")
                    finding.expect(answered >= expires_at or read.status == 200, "not read before its expiry")
                    if receipt["state"] == "expired":
                        finding.expect(receipt["ended_at"] == receipt["expires_at"], "ended at another time")
                    seen[receipt["state"]] += 1
            finding.expect(database.secrets.count_documents(ours) == rounds * together, "a receipt is missing")
            database.secrets.update_many(ours, {"$set": {"purge_at": datetime.now(UTC)}})
            wait_for(lambda: database.secrets.count_documents(ours) == 0)
            read = await api.read(waiting["secret_key"])
            finding.expect(read.body == {"secret": "a secret that waits"}, f"a secret that waits answers {read.status}")
    finding.note = (
        f"{seen['read']} read, {seen['expired']} expired, all envelopes reaped, and no receipt before its time"
    )
    return finding


async def read_at(api: Api, keys: dict[str, str], moment: datetime) -> tuple[datetime, datetime, Answer]:
    """Read a secret at a moment; return when that was asked for, when answered, and the answer."""
    await asyncio.sleep((moment - datetime.now(UTC)).total_seconds())
    asked = datetime.now(UTC)
    answer = await api.read(keys["secret_key"])
    return asked, datetime.now(UTC), answer


def bring_forward(database: Any, receipt_key: str, moment: datetime) -> None:
    """Let a secret expire at a moment."""
    expires_at = {"$set": {"expires_at": moment}}
    secret = database.secrets.find_one_and_update({"_id": receipt_id(receipt_key)}, expires_at)
    database.envelopes.update_one({"_id": secret["lookup_id"]}, expires_at)
