"""A replica set of three that loses its primary, in four ways, under mixed load over two services."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pymongo import WriteConcern

from quart_ots.vault.store import MAX_ATTEMPTS
from tests.faults.api import connected
from tests.faults.finding import Finding, median_and_worst
from tests.faults.ledger import Figures, Ledger, Pulse, settle
from tests.faults.stage import Stage, lent, staged_on_set
from tests.mongod import DATABASE, Mongod, ReplicaSet, wait_for

# Seconds of load that go on after a new primary is there, and after the old one is back.
AFTER = 1


def kill(database: ReplicaSet) -> Mongod:
    """End the primary by kill -9."""
    primary = database.wait_for_primary()
    primary.kill()
    return primary


def freeze(database: ReplicaSet) -> Mongod:
    """Stop the primary by SIGSTOP: it keeps its connections, and wakes up believing that it is still primary."""
    primary = database.wait_for_primary()
    primary.pause()
    return primary


def step_down(database: ReplicaSet) -> Mongod:
    """Let the primary hand over."""
    return database.step_down()


def partition(database: ReplicaSet) -> Mongod:
    """Cut the primary off from the other members, but not from the services."""
    primary = database.wait_for_primary()
    database.partition(primary)
    return primary


@dataclass(frozen=True)
class Way:
    """One way to lose a primary.

    Args:
        words: For the report.
        lose: Do it, and return the old primary.
        mend: Bring the old primary back.

    """

    words: str
    lose: Callable[[ReplicaSet], Mongod]
    mend: Callable[[ReplicaSet, Mongod], None]


WAYS = {
    "kill": Way("kill -9 of the primary", kill, lambda database, old: old.start()),
    "freeze": Way("SIGSTOP of the primary, SIGCONT after the election", freeze, lambda database, old: old.resume()),
    "step down": Way("replSetStepDown", step_down, lambda database, old: None),
    "partition": Way(
        "the primary cut off from the other members, and not from the services",
        partition,
        lambda database, old: database.heal(),
    ),
}


async def failover(way: str, rounds: int = 20, seed: int = 1, on: Stage[ReplicaSet] | None = None) -> Finding:
    """Lose the primary under load, bring it back under load, and look at every secret of the round."""
    finding = Finding(
        "what was acknowledged outlives a primary, and what was told stays true",
        f"{WAYS[way].words}, under mixed load over two services",
        rounds,
    )
    figures, chance = Figures(), random.Random(seed)
    refused: list[float] = []
    gaps: list[float] = []
    late: list[float] = []
    pulses = 0
    with lent(on, staged_on_set(2, partitions=way == "partition")) as stage:
        for number in range(rounds):
            async with connected(*stage.services) as api:
                ledger, pulse = Ledger(api, seed + number), Pulse(api)
                async with ledger.working(), pulse.beating():
                    await asyncio.sleep(chance.uniform(0.3, 1))
                    old = await asyncio.to_thread(WAYS[way].lose, stage.database)
                    new = await asyncio.to_thread(stage.database.wait_for_primary, old)
                    await asyncio.to_thread(confirm_a_write, stage.database, new)
                    back = time.monotonic()
                    await asyncio.to_thread(wait_for, stage.writable, 60)
                    await asyncio.sleep(AFTER)
                    await asyncio.to_thread(WAYS[way].mend, stage.database, old)
                    await asyncio.sleep(AFTER)
                await asyncio.to_thread(mended, stage)
                await settle(api, ledger, finding, figures)
                pulses += await pulse.settle(api, finding)
                refused.append(pulse.refused_for)
                gaps.append(pulse.longest_gap)
                late.append(pulse.first_after(back))
    finding.note = (
        f"503 for {median_and_worst(refused)}; no create answered for {median_and_worst(gaps)}, of which after a "
        f"majority of the members could write again {median_and_worst(late)}; {pulses:,} creates of a pulse "
        f"acknowledged; {figures.describe()}"
    )
    return finding


def confirm_a_write(database: ReplicaSet, primary: Mongod, members: int | str = "majority") -> None:
    """Return when so many members have a write of this moment."""
    concern = WriteConcern(members, wtimeout=60_000)
    with database.client(primary) as client:
        client[DATABASE].get_collection("confirmed", write_concern=concern).insert_one({})


def mended(stage: Stage[ReplicaSet]) -> None:
    """Wait until all members have all there is, and the services can write."""
    stage.database.wait_until_whole()
    confirm_a_write(stage.database, stage.database.wait_for_primary(), len(stage.database.members))
    wait_for(stage.writable, 60)


async def lone_primary(
    rounds: int = 20, together: int = 24, seed: int = 1, on: Stage[ReplicaSet] | None = None
) -> Finding:
    """Leave the primary alone with a service, and see that nothing is told there that is rolled back later.

    Until it notices that it is alone, the member carries out what it is told, and all that is lost when it meets the
    others again. The service beside it reads, burns and guesses, and asks for receipts meanwhile; then another service,
    beside the new primary, reads and burns the same secrets.
    """
    finding = Finding(
        "a write that is rolled back has neither been answered, nor told by a receipt or a look",
        f"the primary and one service cut off from the other members; {together} secrets are read, burned and guessed "
        "at there, and looked at meanwhile; then read and burned by a service beside the new primary. A trial is a "
        "partition",
        rounds,
    )
    figures, chance, changed, reverted = Figures(), random.Random(seed), 0, 0
    with lent(on, staged_on_set(1, partitions=True)) as stage:
        lone = await asyncio.to_thread(
            stage.add_service, None, lambda service: stage.database.introduce(service.process)
        )
        for number in range(rounds):
            async with connected(stage.service) as api, connected(lone) as lone_api:
                ledger = Ledger(lone_api, seed + number)
                entries = [entry for _ in range(together) if (entry := await ledger.create())]
                old = await asyncio.to_thread(stage.database.wait_for_primary)
                await asyncio.to_thread(stage.database.partition, old, company=[lone.process])
                acting = [
                    asyncio.create_task(chance.choice([ledger.read, ledger.burn, ledger.guess])(entry))
                    for entry in entries
                ]
                await watch(ledger, acting)
                await asyncio.to_thread(stage.database.wait_for_primary, old)
                there = await asyncio.to_thread(find_changed, stage.database, old)
                ledger.api = api
                for entry in entries[::2]:
                    await chance.choice([ledger.read, ledger.burn])(entry)
                await asyncio.to_thread(stage.database.heal)
                await asyncio.to_thread(mended, stage)
                await asyncio.to_thread(lone.wait_until_ready)
                here = await asyncio.to_thread(find_changed, stage.database, old)
                changed += len(there)
                reverted += sum(here.get(id_) != found for id_, found in there.items())
                await settle(api, ledger, finding, figures)
    finding.expect(reverted > 0, "nothing was rolled back, so nothing was tried")
    finding.note = f"{changed} secrets changed on the lone primary, {reverted} rolled back; {figures.describe()}"
    return finding


async def watch(ledger: Ledger, acting: Sequence[asyncio.Task[None]]) -> None:
    """Ask for receipts and looks of all secrets, again and again while something is done to them."""
    while not all(task.done() for task in acting):
        await asyncio.gather(
            *(look(entry) for entry in ledger.entries for look in (ledger.receipt, ledger.look)), asyncio.sleep(0.1)
        )
    await asyncio.gather(*acting)


def find_changed(database: ReplicaSet, member: Mongod) -> dict[str, tuple[str, int]]:
    """Return the state and attempts of each secret that is not as it was created, as one member has them."""
    changed = {"$or": [{"state": {"$ne": "pending"}}, {"attempts_left": {"$lt": MAX_ATTEMPTS}}]}
    with database.client(member) as client:
        found = client[DATABASE].secrets.find(changed, {"state": 1, "attempts_left": 1})
        return {secret["_id"]: (secret["state"], secret["attempts_left"]) for secret in found}
