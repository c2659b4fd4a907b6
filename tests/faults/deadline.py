"""A database that accepts everything and answers nothing: all are told so in time, and are served once it is back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.faults.api import Answer, Api, connected
from tests.faults.finding import Finding, median_and_worst
from tests.faults.stage import Stage, lent, staged
from tests.mongod import Mongod

# Seconds that the database is silent: longer than any request may take.
SILENCE = 7
KINDS = ("look", "create", "receipt", "burn", "read", "guess")


@dataclass(frozen=True)
class Timed:
    """An answer, when it was asked for, and how many seconds it took."""

    answer: Answer
    asked: float
    took: float


async def timed(asking: Coroutine[Any, Any, Answer]) -> Timed:
    """Wait for an answer, and take the time."""
    asked = time.monotonic()
    answer = await asking
    return Timed(answer, asked, time.monotonic() - asked)


def ask(api: Api, kind: str, keys: dict[str, str]) -> Coroutine[Any, Any, Answer]:
    """Ask for something that needs the database."""
    match kind:
        case "look":
            return api.look(keys["secret_key"])
        case "receipt":
            return api.receipt(keys["receipt_key"])
        case "burn":
            return api.burn(keys["receipt_key"])
        case "read":
            return api.read(keys["secret_key"])
        case "guess":
            return api.read(keys["secret_key"], "a wrong passphrase")
        case _:
            return api.generate("a secret")


@contextlib.asynccontextmanager
async def frozen(mongod: Mongod) -> AsyncIterator[None]:
    """Stop it by SIGSTOP for the time of a block."""
    mongod.pause()
    try:
        yield
    finally:
        mongod.resume()


@contextlib.asynccontextmanager
async def replaced(mongod: Mongod) -> AsyncIterator[None]:
    """Put a listener in its place for the time of a block, which reads all that comes."""
    open_: set[asyncio.StreamWriter] = set()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.add(writer)
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass

    await asyncio.to_thread(mongod.kill)
    server = await asyncio.start_server(swallow, "127.0.0.1", mongod.port, backlog=4096)
    try:
        yield
    finally:
        server.close()
        for writer in open_:
            writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.to_thread(mongod.start)


WAYS: dict[str, Callable[[Mongod], contextlib.AbstractAsyncContextManager[None]]] = {
    "SIGSTOP": frozen,
    "a listener in its place": replaced,
}


async def deadline(
    way: str,
    kinds: tuple[str, ...] = KINDS,
    together: int = 200,
    within: float = 6,
    back: float = 1,
    silence: float = SILENCE,
    asking: float = 5,
    on: Stage[Mongod] | None = None,
) -> Finding:
    """Ask for much at once while the database is silent, and go on asking when it is back.

    Args:
        way: One of WAYS.
        kinds: What to ask for.
        together: How often at once.
        within: Seconds that an answer may take.
        back: Seconds after which the service must serve again, counted from when the database does.
        silence: Seconds for which the database is silent, at the least.
        asking: Seconds for which requests go on afterwards.
        on: A stage that stands already.

    """
    finding = Finding(
        f"a database that accepts and never answers is told of within {within:g} s, and the service is back within "
        f"{back:g} s of it",
        f"{way}; {together} requests at once of each kind: {', '.join(kinds)}. A trial is a request",
    )
    took: list[float] = []
    late: list[float] = []
    with lent(on, staged()) as stage:
        for kind in kinds:
            async with connected(stage.service) as api:
                created = await asyncio.gather(*(api.generate("a secret") for _ in range(together)))
                async with WAYS[way](stage.database):
                    begun = time.monotonic()
                    asked = await asyncio.gather(*(timed(ask(api, kind, one.body)) for one in created))
                    await asyncio.sleep(begun + silence - time.monotonic())
                late.append(await until_served(api, created[0].body, asking))
            statuses = Counter(one.answer.status for one in asked)
            took += [one.took for one in asked]
            finding.trials += together
            finding.expect(set(statuses) == {503}, f"{kind}: statuses {dict(statuses)}")
            finding.expect(max(took[-together:]) <= within, f"{kind}: an answer took {max(took[-together:]):.1f} s")
            finding.expect(late[-1] <= back, f"{kind}: served {late[-1]:.1f} s after the database was back")
    finding.note = f"503 after {median_and_worst(took)}; served again after {median_and_worst(late)}"
    return finding


async def until_served(api: Api, keys: dict[str, str], seconds: float) -> float:
    """Ask for a receipt each 50 ms for some time; return how long it took until all that came were served.

    One that came later and was answered late, or told 503, counts from when it came.
    """
    back = time.monotonic()
    asking = []
    while time.monotonic() < back + seconds:
        asking.append(asyncio.create_task(timed(api.receipt(keys["receipt_key"]))))
        await asyncio.sleep(0.05)
    answers = await asyncio.gather(*asking)
    failed = [one.asked for one in answers if one.answer.status != 200]
    first = min((one.asked + one.took for one in answers if one.answer.status == 200), default=back + seconds)
    return max([first, *failed]) - back


async def in_the_midst(
    rounds: int = 20,
    together: int = 60,
    kinds: tuple[str, ...] = KINDS,
    within: float = 6,
    patience: float = 18,
    seed: int = 1,
) -> Finding:
    """Freeze the database at a random moment of requests of all kinds, and let it go on after a while.

    Args:
        rounds: How often.
        together: Requests at once.
        kinds: What they ask for.
        within: Seconds that an answer may take.
        patience: The same for a reading whose claim is in doubt: it is tried again, as 503 might lose the secret.
        seed: Of the moments.

    """
    finding = Finding(
        f"a database that falls silent in the midst of requests is told of within {within:g} s, {patience:g} s where a "
        "claim is in doubt",
        f"SIGSTOP at a random moment of {together} requests at once, some of which wait to be hashed: "
        f"{', '.join(kinds)}. A trial is a request",
    )
    chance = random.Random(seed)
    statuses: Counter[int] = Counter()
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    with staged(BCRYPT_COST="10") as stage:
        for _ in range(rounds):
            async with connected(stage.service) as api:
                created = await asyncio.gather(*(api.generate("a secret") for _ in range(together)))
                chosen = [kinds[number % len(kinds)] for number in range(together)]
                asking = [
                    asyncio.create_task(timed(ask(api, kind, one.body)))
                    for kind, one in zip(chosen, created, strict=True)
                ]
                await asyncio.sleep(chance.uniform(0, 0.6))
                async with frozen(stage.database):
                    answers = await asyncio.gather(*asking)
                for kind, one, keys in zip(chosen, answers, created, strict=True):
                    took[kind].append(one.took)
                    statuses[one.answer.status] += 1
                    limit = patience if kind == "read" else within
                    finding.expect(one.took <= limit, f"{kind}: an answer took {one.took:.1f} s")
                    finding.expect(one.answer.status in (200, 201, 403, 503), f"{kind}: {one.answer.status}")
                    await agree(api, kind, one.answer, keys.body, finding)
    finding.trials = rounds * together
    worst = ", ".join(f"{kind} {max(seconds):.1f} s" for kind, seconds in took.items())
    finding.note = f"statuses {dict(sorted(statuses.items()))}; the slowest {worst}"
    return finding


async def agree(api: Api, kind: str, answer: Answer, keys: dict[str, str], finding: Finding) -> None:
    """See that a receipt agrees with what was told."""
    state = (await api.receipt(keys["receipt_key"])).body.get("state")
    told = {("read", 200): "read", ("burn", 200): "burned"}.get((kind, answer.status))
    if told:
        finding.expect(state == told, f"told {told}, and then the receipt says {state}")
    else:
        asked = {"read": "read", "burn": "burned"}.get(kind, "pending")
        finding.expect(state in ("pending", asked), f"{kind}, {answer.status}: the receipt says {state}")
