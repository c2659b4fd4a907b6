"""Crashes of the service and of its database under mixed load."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tests.faults.api import connected
from tests.faults.finding import Finding
from tests.faults.ledger import Figures, Ledger, settle
from tests.faults.stage import Stage, lent, staged, staged_on_set
from tests.mongod import Mongod, ReplicaSet

# Seconds that a killed database stays away: within the time that a request waits for it, and beyond.
AWAY = (0.1, 3)


async def crash(
    finding: Finding,
    rounds: int,
    seed: int,
    staging: AbstractContextManager[Stage[Any]],
    crash_and_restart: Callable[[Stage[Any]], None],
) -> Finding:
    """End something by kill -9 under load, start it again, and look at every secret of the round."""
    figures, chance = Figures(), random.Random(seed)
    with staging as stage:
        for number in range(rounds):
            async with connected(stage.service, seconds=30) as api:
                ledger = Ledger(api, seed + number, until_lost=True)
                async with ledger.working():
                    await asyncio.sleep(chance.uniform(0.1, 1))
                    await asyncio.to_thread(crash_and_restart, stage)
                await asyncio.to_thread(stage.service.wait_until_ready)
                await settle(api, ledger, finding, figures)
    finding.trials = rounds
    finding.note = figures.describe()
    return finding


async def of_the_service(rounds: int = 50, seed: int = 1, on: Stage[Mongod] | None = None) -> Finding:
    """Kill the service."""

    def crash_and_restart(stage: Stage[Mongod]) -> None:
        stage.service.kill()
        stage.service.start()

    finding = Finding("what was acknowledged outlives a crash of the service", "kill -9 under mixed load")
    return await crash(finding, rounds, seed, lent(on, staged()), crash_and_restart)


async def of_the_database(rounds: int = 50, seed: int = 2, on: Stage[Mongod] | None = None) -> Finding:
    """Kill a standalone, and let the service live."""
    chance = random.Random(seed)

    def crash_and_restart(stage: Stage[Mongod]) -> None:
        stage.database.kill()
        time.sleep(chance.choice(AWAY))
        stage.database.start()

    finding = Finding(
        "what was acknowledged outlives a crash of the database (a standalone)", "kill -9 of mongod under mixed load"
    )
    return await crash(finding, rounds, seed, lent(on, staged()), crash_and_restart)


async def of_the_set(rounds: int = 50, seed: int = 4) -> Finding:
    """Kill all three members of a replica set at once, and let the service live."""
    chance = random.Random(seed)

    def crash_and_restart(stage: Stage[ReplicaSet]) -> None:
        for member in stage.database.members:
            member.process.kill()
        for member in stage.database.members:
            member.process.wait()
        time.sleep(chance.choice(AWAY))
        for member in chance.sample(stage.database.members, 3):
            member.launch()
        for member in stage.database.members:
            member.wait_until_listening()
        stage.database.wait_until_whole()

    finding = Finding(
        "what was acknowledged outlives a crash of the whole replica set",
        "kill -9 of all three members at once under mixed load",
    )
    return await crash(finding, rounds, seed, staged_on_set(), crash_and_restart)


async def window(reads: int = 200, seed: int = 3, on: Stage[Mongod] | None = None) -> Finding:
    """Kill the service in the middle of single reads, to see how often a claim was made whose answer nobody got."""
    finding = Finding(
        "the one window in which a secret is lost is between its claim and its answer",
        "kill -9 of the service at a random moment of a burst of 20 reads; a trial is a read",
        reads,
    )
    figures, chance, delivered = Figures(), random.Random(seed), 0
    with lent(on, staged()) as stage:
        for _ in range(reads // 20):
            async with connected(stage.service) as api:
                ledger = Ledger(api, seed)
                entries = [entry for _ in range(20) if (entry := await ledger.create())]
                reading = [asyncio.create_task(ledger.read(entry)) for entry in entries]
                await asyncio.sleep(chance.uniform(0.01, 0.12))
                stage.service.kill()
                await asyncio.gather(*reading)
                await asyncio.to_thread(stage.service.start)
                await settle(api, ledger, finding, figures)
                delivered += sum(entry.delivered for entry in entries)
    waiting = figures.doubtful_reads - figures.undelivered
    finding.note = f"{delivered} delivered, {waiting} still waiting, {figures.undelivered} lost"
    return finding
