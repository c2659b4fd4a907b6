"""The hashing pool's slots under whatever comes in whatever order: none is lost, none is given twice."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from quart_ots.vault.errors import BusyError, ClientGoneError, DrainingError
from quart_ots.vault.pool import Pool

# What may happen, and to which of those who came; several things may happen before anyone else gets to run.
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*["come", "run"] * 4, *["leave"] * 4, *["go", "cancel"] * 2, "stop"]), st.integers(0, 8)
    ),
    min_size=10,
    max_size=40,
)


class Comer:
    """One who comes for a slot, holds it until told, and notes what became of it."""

    def __init__(self, pool: Pool, log: list[Comer]) -> None:
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.holds, self.held, self.had_gone = False, False, False
        self._leave = asyncio.Event()
        self._log = log
        self.task = loop.create_task(self._hold(pool))

    async def _hold(self, pool: Pool) -> None:
        async with pool.slot(self.gone):
            self.holds = self.held = True
            self.had_gone = self.gone.done()
            self._log.append(self)
            try:
                await self._leave.wait()
            finally:
                self.holds = False

    def leave(self) -> None:
        """Give the slot back, once it is there."""
        self._leave.set()

    def go(self) -> None:
        """Let the client hang up."""
        if not self.gone.done():
            self.gone.set_result(None)


async def rest() -> None:
    """Let everyone go as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


def queued() -> float:
    """Return what the metrics say of how many wait."""
    return REGISTRY.get_sample_value("quart_ots_kdf_queued") or 0


async def check_whole(pool: Pool, slots: int, places: int) -> None:
    """Check that a pool that nobody uses has all of its slots and places, and no more."""
    log: list[Comer] = []
    comers = [Comer(pool, log) for _ in range(places + 1)]
    await rest()
    assert log == comers[:slots]
    with pytest.raises(BusyError):
        comers[-1].task.result()
    for comer in comers:
        comer.leave()
    await rest()
    assert log == comers[:-1]


async def run(steps: list[tuple[str, int]], threads: int, waiting: int, complaints: list[dict[str, Any]]) -> None:
    """Let all of it happen, and check what must hold at each moment and at the end; keep what asyncio complains of."""
    pool = Pool(threads, waiting)
    places = threads + waiting
    slots = threads + min(waiting, -(-threads // 4))
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before = queued()
    comers: list[Comer] = []
    log: list[Comer] = []  # in the order in which they got their slots
    stopped = False
    for what, index in steps:
        chosen = comers[index % len(comers)] if comers else None
        if what == "come":
            comers.append(Comer(pool, log))
        elif what == "run":
            await asyncio.sleep(0)
        elif what == "stop":
            pool.stop()
            stopped = True
        elif chosen is not None:
            act: dict[str, Callable[[], object]] = {"leave": chosen.leave, "go": chosen.go}
            act.get(what, chosen.task.cancel)()
        assert sum(comer.holds for comer in comers) <= slots
    await rest()

    # Nobody waits while a slot is free, nor after a stop.
    holding = sum(comer.holds for comer in comers)
    waits = [comer for comer in comers if not comer.task.done() and not comer.holds]
    assert not waits or (holding == slots and not stopped)
    assert queued() - before == len(waits)
    if not stopped and holding + len(waits) < places:
        pool.check()
    else:
        with pytest.raises(DrainingError if stopped else BusyError):
            pool.check()
    for comer in comers:
        comer.leave()
    await rest()

    assert log == sorted(log, key=comers.index)
    for comer in comers:
        assert not comer.had_gone
        error = None if comer.task.cancelled() else comer.task.exception()
        if comer.held:
            assert error is None
        else:
            assert comer.task.cancelled() or isinstance(error, (BusyError, ClientGoneError, DrainingError))
            assert type(error) is not DrainingError or stopped
            assert not isinstance(error, ClientGoneError) or comer.gone.done()
    assert queued() == before
    if not stopped:
        await check_whole(pool, slots, places)
    pool.close()


@pytest.fixture
def complaints() -> Iterator[list[dict[str, Any]]]:
    """What asyncio complains of: at the end nothing, such as an error that nobody asked for."""
    complaints: list[dict[str, Any]] = []
    yield complaints
    gc.collect()
    assert complaints == []


def test_whatever_happens(complaints: list[dict[str, Any]]) -> None:
    """Slots go to those who wait, first come first served, whoever leaves, hangs up or is cancelled at what moment."""

    @given(STEPS, st.integers(1, 2), st.integers(0, 4))
    @settings(max_examples=300, deadline=None, report_multiple_bugs=False)
    def explore(steps: list[tuple[str, int]], threads: int, waiting: int) -> None:
        asyncio.run(run(steps, threads, waiting, complaints))

    explore()


@pytest.mark.parametrize("apart", [0, 1, 2])
def test_two_things_at_once(complaints: list[dict[str, Any]], apart: int) -> None:
    """A slot that comes in the moment in which its waiter goes is passed on to the next, in each order of the two."""
    came = [("come", 0)] * 4 + [("run", 0)] * 3  # two have slots, two wait
    acts = [("leave", 0), ("go", 2), ("cancel", 2), ("stop", 0)]

    for first, second in itertools.product(acts, acts):
        asyncio.run(run([*came, first, *[("run", 0)] * apart, second], 1, 3, complaints))
