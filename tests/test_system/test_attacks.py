"""A small part of the fault suite (`make faults`) with fixed seeds: each attack finds its promise kept."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.faults import (
    clients,
    crashes,
    database,
    deadline,
    failover,
    inputs,
    limiter,
    model,
    network,
    races,
    soak,
    stops,
    ttl,
)
from tests.faults.finding import Finding
from tests.faults.stage import Stage, staged, staged_on_set
from tests.mongod import Mongod

pytestmark = pytest.mark.own_database

# Seconds for what hangs. How soon the service is back is measured by the long attacks alone.
HANGS = 40.0

# On two services and their standalone, which all of these share.
ON_A_PAIR: dict[str, Callable[..., Any]] = {
    "readers": partial(races.readers, 3, 100),
    "burners": partial(races.burners, 20),
    "tenth guess": partial(races.tenth_guess, 10),
    "last attempt": partial(races.last_attempt, 20),
    "creators": partial(races.creators, 60),
    "reaper": partial(ttl.reaper, 1, 20),
    "hang-up": partial(stops.hang_up, 1),
    "limit of processes": partial(stops.limited, (1, 60), 20),
    "failpoints": partial(database.failpoints, False, ("an error", "no majority"), ("create", "read", "burn")),
    "silent database": partial(deadline.deadline, "SIGSTOP", ("burn",), within=HANGS, back=HANGS, silence=0, asking=1),
    "slow clients": partial(clients.slow, 20, ("silent", "head a byte a second", "keeps alive"), 7, lives=50),
    "aborted requests": partial(clients.aborted, 200, lives=50),
    "openapi": partial(inputs.openapi, 100),
    "soak": partial(soak.soak, 5),
    "crash within reads": partial(crashes.window, 20),
    "crash of the service": partial(crashes.of_the_service, 1),
    "crash of the database": partial(crashes.of_the_database, 1),
}
# On what they start themselves.
ALONE: dict[str, Callable[[], Any]] = {
    "model": partial(model.model, 2, 1, processes=1),
    "expiry": partial(races.expiry, 20),
    "network": partial(network.network, False, ("before its answer",), ("create", "read", "burn")),
    "limiter's network": partial(limiter.one_network, 700),
    "fuzzed envelope": partial(inputs.parser, "envelope", 5_000),
    "fuzzed address": partial(inputs.parser, "address", 5_000),
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Stage[Mongod]]:
    """Two services on a standalone that reaps each second."""
    with staged(2, *ttl.EACH_SECOND) as stage:
        yield stage


def expect_kept(result: Any) -> None:
    """See that an attack was made, and that no promise broke."""
    finding: Finding = asyncio.run(result) if inspect.iscoroutine(result) else result
    assert finding.violations == []
    assert finding.trials > 0


def test_attacks_on_a_set() -> None:
    """A primary that is killed, and one that is left alone, lose nothing and tell nothing that is rolled back."""
    with staged_on_set(2, partitions=True) as stage:
        expect_kept(failover.failover("kill", 1, on=stage))
        expect_kept(failover.lone_primary(1, on=stage))


@pytest.mark.parametrize("attack", ON_A_PAIR.values(), ids=ON_A_PAIR)
def test_attack_on_a_pair(attack: Callable[..., Any], pair: Stage[Mongod]) -> None:
    """The promise holds on two services and a standalone."""
    expect_kept(attack(on=pair))


@pytest.mark.parametrize("attack", ALONE.values(), ids=ALONE)
def test_attack(attack: Callable[[], Any]) -> None:
    """The promise holds."""
    expect_kept(attack())
