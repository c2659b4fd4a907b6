"""A small part of the fault suite (`make faults`) with fixed seeds: each attack finds its promise kept."""

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.faults import clients, crashes, database, inputs, limiter, model, network, races, soak
from tests.faults.finding import Finding

SMALL: dict[str, Callable[[], Any]] = {
    "model": partial(model.model, 8, 1, processes=1),
    "readers": partial(races.readers, 3, 100),
    "burners": partial(races.burners, 20),
    "expiry": partial(races.expiry, 20),
    "tenth guess": partial(races.tenth_guess, 10),
    "creators": partial(races.creators, 60),
    "crash of the service": partial(crashes.of_the_service, 1),
    "crash of the database": partial(crashes.of_the_database, 1),
    "crash within reads": partial(crashes.window, 20),
    "failpoints": partial(database.failpoints, faults=("no majority",)),
    "network": partial(network.network, standalone=True, cuts=("before its answer",)),
    "slow clients": partial(clients.slow, 20, ("silent", "head a byte a second", "keeps alive"), 7, lives=100),
    "aborted requests": partial(clients.aborted, 500, lives=100),
    "openapi": partial(inputs.openapi, 300),
    "fuzzed envelope": partial(inputs.parser, "envelope", 20_000),
    "fuzzed address": partial(inputs.parser, "address", 20_000),
    "limiter's network": partial(limiter.one_network, 700),
    "soak": partial(soak.soak, 5),
}


@pytest.mark.own_database
@pytest.mark.parametrize("attack", SMALL.values(), ids=SMALL)
def test_attack(attack: Callable[[], Any]) -> None:
    """The attack was made, and no promise broke."""
    result = attack()
    finding: Finding = asyncio.run(result) if inspect.iscoroutine(result) else result

    assert finding.violations == []
    assert finding.trials > 0
