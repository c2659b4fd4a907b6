"""Races on real processes: of all who come at the same time, one wins."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.faults import clocked
from tests.faults.api import Api, connected
from tests.faults.finding import Finding
from tests.faults.stage import Stage, lent, staged
from tests.mongod import Mongod
from tests.service import PHRASE


async def readers(secrets: int = 200, crowd: int = 200, on: Stage[Mongod] | None = None) -> Finding:
    """Let a crowd read one secret at once, over two processes."""
    finding = Finding(
        "a secret is read once, however many come at the same time",
        f"{crowd} readers with the right passphrase over two processes, {secrets} times; a trial is a request",
    )
    statuses: Counter[int] = Counter()
    with lent(on, staged(2)) as stage:
        async with connected(*stage.services, kept=True) as api:
            for number in range(secrets):
                keys = (await api.generate(f"secret {number}")).body
                answers = await asyncio.gather(*(api.read(keys["secret_key"]) for _ in range(crowd)))
                state = (await api.receipt(keys["receipt_key"])).body["state"]
                won = [answer.body for answer in answers if answer.status == 200]
                finding.expect(won == [{"secret": f"secret {number}"}], f"{len(won)} readers")
                finding.expect(state == "read", f"the receipt says {state}")
                statuses.update(answer.status for answer in answers)
    finding.trials = secrets * crowd
    odd = set(statuses) - {200, 404}
    finding.expect(not odd, f"statuses {odd}")
    finding.note = f"{statuses[200]} reads, {statuses[404]:,} times 404"
    return finding


async def burners(rounds: int = 1000, together: int = 20, on: Stage[Mongod] | None = None) -> Finding:
    """Let a reader and a burner race."""
    finding = Finding(
        "a secret is read or burned, and the receipt says which", "a reader against a burner, over two processes"
    )
    won: Counter[str] = Counter()
    with lent(on, staged(2)) as stage:
        async with connected(*stage.services, kept=True) as api:

            async def race() -> None:
                keys = (await api.generate("s")).body
                reading, burning = await asyncio.gather(api.read(keys["secret_key"]), api.burn(keys["receipt_key"]))
                state = (await api.receipt(keys["receipt_key"])).body["state"]
                outcome = (reading.status, burning.status, state)
                finding.expect(outcome in ((200, 409, "read"), (404, 200, "burned")), f"outcome {outcome}")
                won[state] += 1

            for _ in range(rounds // together):
                await asyncio.gather(*(race() for _ in range(together)))
    finding.trials = rounds
    finding.note = f"{won['read']} read, {won['burned']} burned"
    return finding


async def expiry(rounds: int = 500, together: int = 10) -> Finding:
    """Let the clock reach the expiry while a secret is read, and look right after."""
    finding = Finding(
        "no reading begins once a secret has expired, and one that has begun is answered",
        "the clock of two processes moved past expires_at while a reader's request runs, and another after it",
    )
    won: Counter[str] = Counter()
    pauses = itertools.cycle((0.0, 0.005, 0.01, 0.02, 0.03))
    with tempfile.TemporaryDirectory() as folder:
        clock = clocked.FileClock(Path(folder) / "clock")
        clock.set(datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))  # beyond the database's reaper
        with clock.told(), staged(2, command=clocked.SERVE_CLOCKED) as stage:
            async with connected(*stage.services, kept=True) as api:
                for _ in range(rounds // together):
                    now = clock()
                    created = await asyncio.gather(*(api.generate("s", ttl=60) for _ in range(together)))
                    clock.set(now + timedelta(milliseconds=59_999))
                    reading = [asyncio.create_task(api.read(keys.body["secret_key"])) for keys in created]
                    await asyncio.sleep(next(pauses))
                    clock.set(now + timedelta(seconds=60))
                    for keys, read in zip(created, await asyncio.gather(*reading), strict=True):
                        receipt = (await api.receipt(keys.body["receipt_key"])).body
                        again = await api.read(keys.body["secret_key"])
                        outcome = (read.status, receipt["state"], again.status)
                        finding.expect(outcome in ((200, "read", 404), (404, "expired", 404)), f"outcome {outcome}")
                        won[receipt["state"]] += 1
    finding.trials = rounds
    finding.note = f"{won['read']} read, {won['expired']} expired"
    return finding


async def tenth_guess(rounds: int = 500, together: int = 10, on: Stage[Mongod] | None = None) -> Finding:
    """Let the right passphrase race with the tenth wrong guess: one attempt is left for the two."""
    finding = Finding(
        "ten attempts, however they come at once",
        "nine wrong guesses, then the right passphrase against a tenth wrong one, over two processes",
    )
    won: Counter[str] = Counter()

    async def race(api: Api) -> None:
        keys = (await api.generate("s")).body
        for _ in range(9):
            await api.read(keys["secret_key"], "wrong")
        right, wrong = await asyncio.gather(api.read(keys["secret_key"]), api.read(keys["secret_key"], "wrong"))
        receipt = (await api.receipt(keys["receipt_key"])).body
        outcome = (right.status, wrong.status, receipt["state"], receipt["attempts_left"])
        finding.expect(outcome in ((200, 404, "read", 0), (404, 403, "locked", 0)), f"outcome {outcome}")
        won[receipt["state"]] += 1

    with lent(on, staged(2)) as stage:
        async with connected(*stage.services, kept=True) as api:
            for _ in range(rounds // together):
                await asyncio.gather(*(race(api) for _ in range(together)))
    finding.trials = rounds
    finding.note = f"{won['read']} read, {won['locked']} locked"
    return finding


async def last_attempt(rounds: int = 500, together: int = 10, on: Stage[Mongod] | None = None) -> Finding:
    """Let a burn race with the last attempt, right or wrong, and compare its answer with the receipt later."""
    finding = Finding(
        "a burn is final: what its answer says stays true, whoever is in flight",
        "nine wrong guesses, then the right passphrase or a tenth wrong one against a burn, over two processes",
    )
    # (reading, burn, what the burn's answer says and the receipt from then on)
    right = {(200, 409, "read"), (404, 200, "burned"), (404, 409, "locked")}
    wrong = {(403, 409, "locked"), (404, 200, "burned")}
    won: Counter[str] = Counter()
    pauses = itertools.cycle((0.0, 0.01, 0.02, 0.04, 0.08))  # a hash takes 16 ms, and some wait for a thread

    async def race(api: Api, phrase: str) -> None:
        keys = (await api.generate("s")).body
        for _ in range(9):
            await api.read(keys["secret_key"], "wrong")
        reading = asyncio.create_task(api.read(keys["secret_key"], phrase))
        await asyncio.sleep(next(pauses))
        burn = await api.burn(keys["receipt_key"])
        told = burn.body["state"]
        states = [(await api.receipt(keys["receipt_key"])).body["state"]]
        outcome = ((await reading).status, burn.status, told)
        states.append((await api.receipt(keys["receipt_key"])).body["state"])
        finding.expect(outcome in (right if phrase == PHRASE else wrong), f"outcome {outcome}")
        finding.expect(states == [told, told], f"told {told}, and then the receipt says {states}")
        won[told] += 1

    with lent(on, staged(2, BCRYPT_COST="8")) as stage:
        async with connected(*stage.services, kept=True) as api:
            for _ in range(rounds // together):
                await asyncio.gather(*(race(api, ("wrong", PHRASE)[number % 2]) for number in range(together)))
    finding.trials = rounds
    finding.note = f"{won['burned']} burned, {won['read']} read, {won['locked']} locked"
    return finding


async def creators(number: int = 10_000, together: int = 50, on: Stage[Mongod] | None = None) -> Finding:
    """Create many secrets over two processes, and read each."""
    finding = Finding(
        "every created secret has keys of its own and is readable", "creates over two processes, then a read of each"
    )
    with lent(on, staged(2)) as stage:
        async with connected(*stage.services, kept=True) as api:
            places = asyncio.Semaphore(together)
            keys: set[str] = set()

            async def create_and_read(index: int) -> None:
                async with places:
                    created = await api.generate(f"secret {index}")
                    if finding.expect(created.status == 201, f"create: {created.status}"):
                        keys.update((created.body["secret_key"], created.body["receipt_key"]))
                        read = await api.read(created.body["secret_key"], PHRASE)
                        finding.expect(read.body == {"secret": f"secret {index}"}, f"read: {read.status}")

            await asyncio.gather(*(create_and_read(index) for index in range(number)))
    finding.trials = number
    finding.expect(len(keys) == 2 * number, f"{len(keys)} keys")
    finding.note = f"{len(keys):,} keys, no two alike"
    return finding
