"""Clients that create, read, guess, burn and look at once, and note all that they are told.

What was told must stay true: a receipt that says `read` once may never say anything else, and neither may a 404 turn
into a secret. What was not answered may have been done or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from tests.faults.api import LOST, Answer, Api
from tests.faults.finding import Finding

T = TypeVar("T")

WORKERS = 8
ACTS = ("create", "create", "read", "guess", "burn", "again", "receipt", "receipt", "look")
# Below, no more guesses: a guess without an answer may have taken an attempt, and locked secrets are another attack's.
ATTEMPTS_KEPT = 3


@dataclass
class Entry:
    """What the clients know of a secret.

    Args:
        text: The secret.
        keys: Its secret_key, receipt_key and expires_at.
        told: The end that an answer has told; "pending" while none has.
        gone: Whether an answer was 404: it may end in any way, but waits no more.
        tried: The ends that were asked for: "read", "burned".
        doubt: Those of them that were not answered.
        delivered: How many answers had the secret.
        attempts_left: The fewest that an answer has told.
        attempts_sure: The fewest that there can be.

    """

    text: str
    keys: dict[str, str]
    told: str = "pending"
    gone: bool = False
    tried: set[str] = field(default_factory=set)
    doubt: set[str] = field(default_factory=set)
    delivered: int = 0
    attempts_left: int = 10
    attempts_sure: int = 10

    @property
    def ended(self) -> bool:
        """Whether an answer has told that it waits no more."""
        return self.gone or self.told != "pending"


class Ledger:
    """The clients of one round, and what they were told.

    Args:
        api: Whom to ask.
        seed: Of what they do.
        until_lost: Whether to stop at the first request without an answer: the service has been killed.

    """

    def __init__(self, api: Api, seed: int, until_lost: bool = False) -> None:
        self.api = api
        self.random = random.Random(seed)
        self.entries: list[Entry] = []
        self.wrong: list[str] = []  # answers that should not have been
        self.statuses: Counter[int] = Counter()
        self.stopped = False
        self._until_lost = until_lost
        self._waiting: list[Entry] = []  # which nobody acts on
        self._doubtful: list[Entry] = []

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Let the clients work for the time of a block, and finish what they have begun then."""
        work = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        try:
            yield
        finally:
            self.stopped = True
            await asyncio.gather(*work)

    async def _work(self) -> None:
        while not self.stopped:
            act = self.random.choice(ACTS)
            guessable = [entry for entry in self._waiting if entry.attempts_sure > ATTEMPTS_KEPT]
            if act == "again" and self._doubtful:
                entry = self._doubtful.pop(self.random.randrange(len(self._doubtful)))
                await (self.read(entry) if self.random.random() < 0.5 else self.burn(entry))
            elif act in ("receipt", "look") and self.entries:
                entry = self.random.choice(self.entries)
                await (self.receipt(entry) if act == "receipt" else self.look(entry))
            elif act == "guess" and guessable:
                await self.guess(self.random.choice(guessable))
            elif act in ("read", "burn") and self._waiting:
                # Taken out of the others' reach, who may only look meanwhile.
                entry = self._waiting.pop(self.random.randrange(len(self._waiting)))
                await (self.read(entry) if act == "read" else self.burn(entry))
            else:
                await self.create()

    async def create(self) -> Entry | None:
        """Create a secret."""
        text = f"secret {self.random.random()}"
        answer = await self.api.generate(text)
        if not self._count(answer, 201):
            return None
        entry = Entry(text, answer.body)
        self._waiting.append(entry)
        self.entries.append(entry)
        return entry

    async def read(self, entry: Entry) -> None:
        """Read a secret."""
        before = entry.ended
        sure = not before and not entry.doubt
        entry.tried.add("read")
        entry.attempts_sure -= 1
        answer = await self.api.read(entry.keys["secret_key"])
        if answer.status in (LOST, 503):
            self._count(answer)
            self._note_doubt(entry, "read")
        elif self._count(answer, 200 if sure else 404, *(() if before else (200,))):
            if answer.status == 404:
                entry.gone = True
                return
            self._expect(answer.body == {"secret": entry.text}, "a reader got another secret")
            self._expect(entry.delivered == 0, "a secret was read twice")
            entry.delivered += 1
            self._tell(entry, "read")

    async def guess(self, entry: Entry) -> None:
        """Guess wrong at a secret that nobody else acts on, but perhaps from now on."""
        entry.attempts_sure -= 1
        answer = await self.api.read(entry.keys["secret_key"], "a wrong passphrase")
        # 404 where somebody has read or burned it meanwhile.
        if self._count(answer, 403, *((404,) if entry.tried else ())) and answer.status == 403:
            entry.attempts_left = min(entry.attempts_left, answer.body["attempts_left"])
            self._expect(answer.body["attempts_left"] >= entry.attempts_sure, "attempts are missing")

    async def burn(self, entry: Entry) -> None:
        """Burn a secret."""
        before, doubt = entry.told, set(entry.doubt)
        entry.tried.add("burned")
        answer = await self.api.burn(entry.keys["receipt_key"])
        if answer.status in (LOST, 503):
            self._count(answer)
            self._note_doubt(entry, "burned")
            return
        right = {"pending": (200, 409), "burned": (200,), "read": (409,)}[before]
        if not doubt and before == "pending":
            right = (200,)
        if self._count(answer, *right):
            self._tell(entry, answer.body["state"])

    async def receipt(self, entry: Entry) -> None:
        """Look at a receipt, whatever others do to its secret meanwhile."""
        before, attempts_left, gone = entry.told, entry.attempts_left, entry.gone
        answer = await self.api.receipt(entry.keys["receipt_key"])
        if not self._count(answer, 200):
            return
        state = answer.body["state"]
        if before != "pending":
            self._expect(state == before, f"told {before}, and then the receipt says {state}")
        elif state == "pending":
            self._expect(not gone, "404, and then the receipt says pending")
        elif self._expect(state in entry.tried, f"the receipt says {state}, which nobody asked for"):
            self._tell(entry, state)
        self._expect(answer.body["attempts_left"] <= attempts_left, "attempts came back")
        self._expect(answer.body["attempts_left"] >= entry.attempts_sure, "attempts are missing")

    async def look(self, entry: Entry) -> None:
        """See whether a secret waits, whatever others do to it meanwhile."""
        before = entry.ended
        answer = await self.api.look(entry.keys["secret_key"])
        if self._count(answer, *(() if before else (200,)), *((404,) if entry.tried else ())):
            entry.gone = entry.gone or answer.status == 404

    def _tell(self, entry: Entry, state: str) -> None:
        """Note an end that was told."""
        self._expect(entry.told in ("pending", state), f"told {entry.told}, and then {state}")
        entry.told = state

    def _note_doubt(self, entry: Entry, act: str) -> None:
        entry.doubt.add(act)
        self._doubtful.append(entry)

    def _count(self, answer: Answer, *right: int) -> bool:
        """Count an answer; return whether it is one of the right ones, and note it if it is no fault's either."""
        self.statuses[answer.status] += 1
        if answer.status == LOST:
            self.stopped = self.stopped or self._until_lost
        elif answer.status != 503:
            return self._expect(answer.status in right, f"{answer.status} instead of {' or '.join(map(str, right))}")
        return False

    def _expect(self, holds: bool, otherwise: str) -> bool:
        if not holds:
            self.wrong.append(otherwise)
        return holds


@dataclass
class Figures:
    """What the ledgers of an attack's rounds came to."""

    created: int = 0
    read: int = 0
    told: int = 0  # ends
    statuses: Counter[int] = field(default_factory=Counter)
    doubtful_reads: int = 0
    undelivered: int = 0  # of them

    def describe(self) -> str:
        """Return the figures in words."""
        return (
            f"{self.created:,} secrets and {self.read:,} reads acknowledged, {self.told:,} ends told, "
            f"{self.statuses[503]:,} requests told 503, {self.statuses[LOST]:,} without an answer; "
            f"claimed but not delivered: {self.undelivered} of {self.doubtful_reads} reads in doubt"
        )


async def settle(api: Api, ledger: Ledger, finding: Finding, figures: Figures) -> None:
    """See that each secret of a ledger is as its clients were told, or as an unanswered request may have made it."""
    finding.violations += ledger.wrong
    figures.created += len(ledger.entries)
    figures.read += sum(entry.delivered for entry in ledger.entries)
    figures.told += sum(entry.ended for entry in ledger.entries)
    figures.statuses += ledger.statuses
    for entries in batches(ledger.entries):
        await asyncio.gather(*(_settle(api, entry, finding, figures) for entry in entries))


async def _settle(api: Api, entry: Entry, finding: Finding, figures: Figures) -> None:
    receipt = (await api.receipt(entry.keys["receipt_key"])).body
    state, attempts_left = receipt.get("state"), receipt.get("attempts_left", 0)
    finding.expect(attempts_left <= entry.attempts_left, f"{attempts_left} attempts left, {entry.attempts_left} before")
    read = await api.read(entry.keys["secret_key"])
    after = (await api.receipt(entry.keys["receipt_key"])).body.get("state")
    right = {entry.told} if entry.told != "pending" else {*entry.doubt, *([] if entry.gone else ["pending"])}
    finding.expect(state in right, f"told {entry.told}, in doubt {sorted(entry.doubt)}: the receipt says {state}")
    if state == "pending":
        finding.expect(read.body == {"secret": entry.text}, f"a waiting secret answers {read.status}")
        finding.expect(after == "read", f"a read secret's receipt says {after}")
    else:
        finding.expect(read.status == 404, f"a secret that was {state} answers {read.status}")
    finding.expect(entry.delivered == 0 or state == "read", f"a reader has it, and the receipt says {state}")
    if "read" in entry.doubt and not entry.delivered:
        figures.doubtful_reads += 1
        figures.undelivered += state == "read"


class Pulse:
    """Creates a secret each tenth of a second, to see for how long that does not work.

    Args:
        api: Whom to ask.

    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._created: list[tuple[float, dict[str, str]]] = []
        self._failed: list[float] = []

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Create for the time of a block."""
        ended, beats = asyncio.Event(), set[asyncio.Task[None]]()

        async def beat() -> None:
            answer = await self._api.generate("a pulse")
            if answer.status == 201:
                self._created.append((time.monotonic(), answer.body))
            else:
                self._failed.append(time.monotonic())

        async def run() -> None:
            while not ended.is_set():
                beats.add(asyncio.create_task(beat()))
                await asyncio.sleep(0.1)

        running = asyncio.create_task(run())
        try:
            yield
        finally:
            ended.set()
            await running
            await asyncio.gather(*beats)

    @property
    def longest_gap(self) -> float:
        """The longest time, in seconds, between two creates that were answered."""
        times = sorted(at for at, _ in self._created)
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    @property
    def refused_for(self) -> float:
        """The seconds from the first 503 to the last."""
        return max(self._failed) - min(self._failed) if self._failed else 0.0

    def first_after(self, moment: float) -> float:
        """Return how many seconds after a moment a create was answered."""
        return min((at for at, _ in self._created if at >= moment), default=math.inf) - moment

    async def settle(self, api: Api, finding: Finding) -> int:
        """See that all that was created is there, and return how many that are."""
        for created in batches([body for _, body in self._created]):
            looks = await asyncio.gather(*(api.look(keys["secret_key"]) for keys in created))
            lost = sum(look.status != 200 for look in looks)
            finding.expect(lost == 0, f"{lost} acknowledged secrets are lost")
        return len(self._created)


def batches(items: list[T]) -> Iterable[list[T]]:
    """Return a list in parts, for requests of which not all are sent at once."""
    return (items[start : start + 2 * WORKERS] for start in range(0, len(items), 2 * WORKERS))
