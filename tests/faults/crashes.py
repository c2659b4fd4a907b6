"""Crashes under mixed load, against a ledger of what was answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.api import LOST, Api, connected
from tests.faults.finding import Finding
from tests.faults.stage import Stage, staged

WORKERS = 8


@dataclass
class Entry:
    """What the clients know of a secret.

    Args:
        text: The secret.
        keys: Its secret_key, receipt_key and expires_at.
        told: The states that answers have told: only such a one, or what a lost answer may have done, can be true.
        doubt: What was asked for in vain: "read", "burned".
        attempts_left: The fewest that an answer has told.

    """

    text: str
    keys: dict[str, str]
    told: str = "pending"
    doubt: set[str] = field(default_factory=set)
    attempts_left: int = 10


class Ledger:
    """Clients that note all they are told."""

    def __init__(self, api: Api, seed: int) -> None:
        self.api = api
        self.random = random.Random(seed)
        self.entries: list[Entry] = []
        self.wrong: list[str] = []  # answers that should not have been
        self.in_flight = self.unavailable = self.reads = 0
        self.stopped = False

    async def work(self) -> None:
        """Create, read and burn until stopped. One that is acted on is taken out of the others' reach."""
        waiting: list[Entry] = []
        while not self.stopped:
            act = self.random.choice(["create", "create", "read", "wrong", "burn"])
            if act == "create" or not waiting:
                text = f"secret {self.random.random()}"
                created = await self.api.generate(text)
                self.count(created.status, 201)
                if created.status == 201:
                    entry = Entry(text, created.body)
                    waiting.append(entry)
                    self.entries.append(entry)
            elif act == "wrong":
                entry = max(waiting, key=lambda one: one.attempts_left)  # far from being locked
                answer = await self.api.read(entry.keys["secret_key"], "wrong")
                self.count(answer.status, 403)
                entry.attempts_left = min(entry.attempts_left, answer.body.get("attempts_left", 10))
            else:
                entry = waiting.pop(self.random.randrange(len(waiting)))
                await (self.read(entry) if act == "read" else self.burn(entry))

    async def read(self, entry: Entry) -> None:
        """Read a secret."""
        answer = await self.api.read(entry.keys["secret_key"])
        self.count(answer.status, 200)
        if answer.status == 200:
            if answer.body != {"secret": entry.text}:
                self.wrong.append("a reader got another secret")
            self.reads += 1
            entry.told = "read"
        elif answer.status in (LOST, 503):
            entry.doubt.add("read")

    async def burn(self, entry: Entry) -> None:
        """Burn a secret."""
        answer = await self.api.burn(entry.keys["receipt_key"])
        self.count(answer.status, 200)
        if answer.status == 200:
            entry.told = "burned"
        elif answer.status in (LOST, 503):
            entry.doubt.add("burned")

    def count(self, status: int, right: int) -> None:
        """Count what did not come back, and ask for no more then: it would be refused. Note what is not right."""
        self.unavailable += status == 503
        if status == LOST:
            self.in_flight += 1
            self.stopped = True
        elif status not in (right, 503):
            self.wrong.append(f"{status} instead of {right}")


async def crash(
    rounds: int,
    seed: int,
    promise: str,
    attack: str,
    crash_and_restart: Callable[[Stage], None],
    reference: bool = False,
) -> Finding:
    """End something by kill -9 under load, start it again, and look at every secret of the round."""
    finding = Finding(promise, attack)
    lost: Counter[str] = Counter()
    secrets = reads = in_flight = unavailable = 0
    chance = random.Random(seed)
    with staged(reference=reference) as stage:
        for number in range(rounds):
            async with connected(stage.service, seconds=30) as api:
                ledger = Ledger(api, seed + number)
                work = [asyncio.create_task(ledger.work()) for _ in range(WORKERS)]
                await asyncio.sleep(chance.uniform(0.1, 1))
                await asyncio.to_thread(crash_and_restart, stage)
                ledger.stopped = True
                await asyncio.gather(*work)
                await asyncio.to_thread(stage.service.wait_until_ready)
                for entry in ledger.entries:
                    await settle(api, entry, finding, lost)
                finding.violations += ledger.wrong
                secrets, reads = secrets + len(ledger.entries), reads + ledger.reads
                in_flight, unavailable = in_flight + ledger.in_flight, unavailable + ledger.unavailable
    finding.trials = rounds
    finding.note = (
        f"{secrets:,} secrets and {reads:,} reads acknowledged, {in_flight} requests cut off, {unavailable} told 503; "
        f"claimed but not delivered: {lost['read']} of {lost['reading']} reads in flight"
    )
    return finding


async def settle(api: Api, entry: Entry, finding: Finding, lost: Counter[str]) -> None:
    """See that a secret stands as its clients were told, or as a request of theirs in flight may have made it."""
    told = (await api.receipt(entry.keys["receipt_key"])).body
    receipt, attempts_left = told.get("state"), told.get("attempts_left", 0)
    finding.expect(attempts_left <= entry.attempts_left, f"{attempts_left} attempts left, {entry.attempts_left} before")
    read = await api.read(entry.keys["secret_key"])
    after = (await api.receipt(entry.keys["receipt_key"])).body.get("state")
    if entry.told == "pending":
        right = receipt in {"pending", *entry.doubt}
        lost["reading"] += "read" in entry.doubt
        lost["read"] += receipt == "read"
    else:
        right = receipt == entry.told
    finding.expect(right, f"told {entry.told}, in doubt {sorted(entry.doubt)}: the receipt says {receipt}")
    if receipt == "pending":
        finding.expect(read.body == {"secret": entry.text}, f"a waiting secret answers {read.status}")
        finding.expect(after == "read", f"a read secret's receipt says {after}")
    else:
        finding.expect(read.status == 404, f"a secret that was {receipt} answers {read.status}")


async def of_the_service(rounds: int = 50, seed: int = 1) -> Finding:
    """Kill the service."""

    def crash_and_restart(stage: Stage) -> None:
        stage.service.kill()
        stage.service.start()

    return await crash(
        rounds,
        seed,
        "what was acknowledged outlives a crash of the service",
        "kill -9 under mixed load",
        crash_and_restart,
    )


async def of_the_database(rounds: int = 50, seed: int = 2) -> Finding:
    """Kill the database, and let the service live."""
    chance = random.Random(seed)

    def crash_and_restart(stage: Stage) -> None:
        stage.mongo.kill()
        time.sleep(chance.choice([0.1, 3]))  # within the time that the driver waits, and beyond
        stage.mongo.start()

    return await crash(
        rounds,
        seed,
        "what was acknowledged outlives a crash of the database",
        "kill -9 of SecantusDB, its journal flushed at each commit as mongod's is for `j: true`, under mixed load",
        crash_and_restart,
        reference=True,
    )


async def window(reads: int = 200, seed: int = 3) -> Finding:
    """Kill the service in the midst of single reads, to see how often a claim was made whose answer nobody got."""
    finding = Finding(
        "the one window in which a secret is lost is between its claim and its answer",
        "kill -9 of the service at a random moment of a burst of 20 reads",
    )
    chance = random.Random(seed)
    counted: Counter[str] = Counter()
    with staged() as stage:
        for _ in range(reads // 20):
            async with connected(stage.service) as api:
                entries = [Entry("s", (await api.generate("s")).body) for _ in range(20)]
                ledger = Ledger(api, seed)
                reading = [asyncio.create_task(ledger.read(entry)) for entry in entries]
                await asyncio.sleep(chance.uniform(0.01, 0.12))
                stage.service.kill()
                await asyncio.gather(*reading)
                await asyncio.to_thread(stage.service.start)
                counted["delivered"] += ledger.reads
                finding.violations += ledger.wrong
                lost: Counter[str] = Counter()
                for entry in entries:
                    await settle(api, entry, finding, lost)
                counted.update(lost)
    finding.trials = reads
    waiting, lost_at_all = counted["reading"] - counted["read"], counted["read"]
    finding.note = f"{counted['delivered']} delivered, {waiting} still waiting, {lost_at_all} lost"
    return finding
