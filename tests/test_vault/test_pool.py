"""The hashing pool: its bounds, its line, and how it shares the machine."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from quart_ots.vault.errors import BusyError, ClientGoneError, DrainingError
from quart_ots.vault.pool import NICENESS, Pool, ThreadsError, usable_cores

Gone: TypeAlias = asyncio.Future[None]
Make: TypeAlias = Callable[[int, int], Pool]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """A function that makes a pool of so many threads, with so many places in line."""
    pools: list[Pool] = []

    def make(threads: int, waiting: int) -> Pool:
        pools.append(Pool(threads, waiting))
        pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
async def gone() -> Gone:
    """What says that a client has gone: not yet."""
    return asyncio.get_running_loop().create_future()


async def begin(step: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a step, and let it come as far as it can."""
    task = asyncio.ensure_future(step)
    await asyncio.sleep(0)
    return task


async def hold(pool: Pool, gone: Gone, until: asyncio.Event) -> None:
    """Hold a slot until an event."""
    async with pool.slot(gone):
        await until.wait()


async def test_bounds(make: Make, gone: Gone) -> None:
    """A pool of one thread and two places in line takes three, and another one when one of them has left."""
    pool, leave, stay = make(1, 2), asyncio.Event(), asyncio.Event()
    first = await begin(hold(pool, gone, leave))
    others = [await begin(hold(pool, gone, stay)) for _ in range(2)]

    with pytest.raises(BusyError):
        await hold(pool, gone, stay)

    leave.set()
    await first
    others.append(await begin(hold(pool, gone, stay)))
    stay.set()
    await asyncio.gather(*others)


async def test_no_line(make: Make, gone: Gone) -> None:
    """A pool without a line takes as many as it has threads."""
    pool = make(2, 0)
    async with pool.slot(gone), pool.slot(gone):
        with pytest.raises(BusyError):
            pool.check()

    pool.check()


async def test_first_come_first_served(make: Make, gone: Gone) -> None:
    """Slots go to those who wait in the order in which they came."""
    pool, served = make(1, 3), []

    async def serve(number: int) -> None:
        async with pool.slot(gone):
            served.append(number)

    async with AsyncExitStack() as slots:
        for _ in range(2):
            await slots.enter_async_context(pool.slot(gone))
        waiting = [await begin(serve(number)) for number in range(2)]
    await asyncio.gather(*waiting)

    assert served == [0, 1]


async def test_who_is_gone_leaves_the_line(make: Make, gone: Gone) -> None:
    """A client that hangs up while it waits makes room for another one, and gets no slot."""
    pool, hung_up = make(1, 2), asyncio.get_running_loop().create_future()
    async with pool.slot(gone), pool.slot(gone):
        waiting = await begin(hold(pool, hung_up, asyncio.Event()))
        with pytest.raises(BusyError):
            pool.check()
        hung_up.set_result(None)

        with pytest.raises(ClientGoneError):
            await waiting

        pool.check()
    with pytest.raises(ClientGoneError):
        await hold(pool, hung_up, asyncio.Event())


@pytest.mark.parametrize("end", ["gone", "cancelled"])
async def test_slot_that_comes_too_late(make: Make, gone: Gone, end: str) -> None:
    """A slot that comes in the moment in which its client goes is free for others."""
    pool, hung_up, stay = make(1, 2), asyncio.get_running_loop().create_future(), asyncio.Event()
    async with pool.slot(gone):
        async with pool.slot(gone):
            waiting = await begin(hold(pool, hung_up, stay))
        # The slot is given, but the one who waited for it has not run since.
        if end == "gone":
            hung_up.set_result(None)
        else:
            waiting.cancel()
        with pytest.raises((ClientGoneError, asyncio.CancelledError)):
            await waiting

        holding = await begin(hold(pool, gone, stay))

        pool.check()  # whoever holds is not in line
    stay.set()
    await holding


async def test_stop(make: Make, gone: Gone) -> None:
    """A pool that is stopped sends away who waits and who comes; who holds a slot keeps it, and can still hash."""
    pool, stay = make(1, 2), asyncio.Event()
    async with pool.slot(gone), pool.slot(gone):
        waiting = await begin(hold(pool, gone, stay))

        pool.stop()

        with pytest.raises(DrainingError):
            await waiting
        with pytest.raises(DrainingError):
            await hold(pool, gone, stay)
        assert await pool.run(sum, [1, 2]) == 3


async def test_errors_reach_the_caller(make: Make, gone: Gone) -> None:
    """What a function raises in its thread is raised here, and the thread goes on."""
    pool = make(1, 0)
    async with pool.slot(gone):
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 1, 0)

        assert await pool.run(divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize(("seconds", "retry_after"), [(0.0, 1), (1.0, 5)], ids=["faster", "slower"])
async def test_estimate_follows_what_keys_take(
    make: Make, gone: Gone, monkeypatch: pytest.MonkeyPatch, seconds: float, retry_after: int
) -> None:
    """How long until all are through is estimated by what keys took recently: here five of them, one after another."""
    pool, now = make(1, 4), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def take() -> None:
        now[0] += seconds

    async with pool.slot(gone), pool.slot(gone):
        for _ in range(60):
            await pool.run(take)
        stay = asyncio.Event()
        waiting = [await begin(hold(pool, gone, stay)) for _ in range(3)]

        with pytest.raises(BusyError) as refused:
            pool.check()
        stay.set()
    await asyncio.gather(*waiting)

    assert refused.value.retry_after == retry_after


def test_all_threads_are_there_from_the_start() -> None:
    """No request can find that the system has no thread left for it."""
    before = set(threading.enumerate())  # some of which may be about to end
    pool = Pool(5, 0)

    pool.start()

    assert len(set(threading.enumerate()) - before) == 5
    pool.close()


def test_start_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses a thread, that is known at the start."""
    pool = Pool(5, 0)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    with pytest.raises(ThreadsError):
        pool.start()


async def niceness(pool: Pool) -> int:
    """Return the priority at which a pool's thread runs: on Linux, that of the thread that asks."""
    return await pool.run(os.getpriority, os.PRIO_PROCESS, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
async def test_hashing_gives_way(make: Make) -> None:
    """The threads that hash are below all others, so that answers need not wait for them."""
    before = os.getpriority(os.PRIO_PROCESS, 0)

    assert await niceness(make(1, 0)) == min(19, before + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


async def test_hashing_where_priorities_are_forbidden(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that lets nobody change a priority does not stop the service."""

    def forbid(*_: int) -> None:
        raise PermissionError

    before = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(os, "setpriority", forbid)

    assert await niceness(make(1, 0)) == before


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 8),
        ("0::/\n", {"cpu.max": "rubbish"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, 1),
        (
            "4:cpu,cpuacct:/d\n1:name=systemd:/d\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "250000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "4:cpu,cpuacct:/d\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "-1", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            8,
        ),
        (
            "4:cpu,cpuacct:/docker/0123\n",  # a container's own path, which is the root of what it sees
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            1,
        ),
    ],
)
def test_usable_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], cores: int
) -> None:
    """As many cores can be used as the affinity and the smallest quota of the cgroup and its ancestors allow."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    assert usable_cores(tmp_path / "proc", tmp_path / "cgroup") == cores


@pytest.mark.parametrize("cgroup", [None, b"", b"0::/\xff\n", b"nonsense\n"])
def test_usable_cores_without_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: bytes | None) -> None:
    """Where there are no cgroups, or none that can be read, the affinity alone counts."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    (tmp_path / "self").mkdir()
    if cgroup is not None:
        (tmp_path / "self" / "cgroup").write_bytes(cgroup)

    assert usable_cores(tmp_path, tmp_path) == 2
