"""The bounded pool in which keys are stretched: its threads, a slot for each, and the line before them.

bcrypt releases the GIL, so that as many threads as usable cores is all that helps. On Linux these threads give way to
all others of the service: a 60 ms hash can wait a millisecond, an answer should not wait for a hash.
"""

from __future__ import annotations

import asyncio
import collections
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from .. import metrics
from .errors import BusyError, ClientGoneError, DrainingError, UnavailableError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Seconds that a key is taken to need until one has been measured: bcrypt's at cost 10.
FIRST_GUESS = 0.065
# Weight of the newest measurement in the moving average.
NEWEST = 0.1
# Steps of nice(2) below the process's own: a tenth of a core beside a thread that wants all of it. At 19 it would be a
# hundredth, and a thread that is preempted while it holds the GIL would stop the whole service.
NICENESS = 10


class ThreadsError(Exception):
    """The system does not allow as many threads as are needed."""


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores the process may use: the smaller of its affinity and its cgroup's quota, rounded up.

    Args:
        proc: Where procfs is mounted.
        cgroups: Where the cgroup file systems are mounted; a container sees its own cgroup as their root.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("cpu.max") and scheduler/sched-bwc.rst (version 1).

    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):  # no procfs, or a name that is no text
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # An ancestor's quota binds as well.
            for folder in (Path(path), *Path(path).parents):
                if controllers == "":
                    cores = min(cores, _quota((cgroups / str(folder).lstrip("/")) / "cpu.max"))
                elif "cpu" in controllers.split(","):
                    for name in (controllers, "cpu"):  # they may be mounted in another order, and linked
                        own = cgroups / name / str(folder).lstrip("/")
                        cores = min(cores, _quota(own / "cpu.cfs_quota_us", own / "cpu.cfs_period_us"))
    return max(1, math.ceil(cores))


def _quota(*files: Path) -> float:
    """Return the cores that a quota and its period, in one file or two, amount to; infinity if there is none."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # version 1 writes -1 for none
    except (OSError, ValueError, ZeroDivisionError):  # version 2 writes "max" for none
        return math.inf


def start_threads(executor: ThreadPoolExecutor, number: int) -> None:
    """Start all threads of an executor, which it would otherwise start one by one when work comes.

    Raises:
        ThreadsError: The system refuses a thread.

    """
    ready = threading.Barrier(number + 1)
    try:
        for _ in range(number):
            executor.submit(ready.wait)
    except RuntimeError:  # "can't start new thread"
        ready.abort()
        raise ThreadsError from None
    ready.wait()


def _give_way() -> None:
    """Lower the priority of the calling thread alone: on Linux each thread has its own, see sched(7)."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it; then answers are slower while the pool is full
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


class Pool:
    """Hashing threads, slots that give the right to use one, and a bounded line for slots.

    There are a few more slots than threads, so that a thread does not idle while the next request takes its attempt
    in the database.

    Args:
        threads: How many hashes run at once; 0 for one for each usable core.
        waiting: How many requests may wait for a thread.

    """

    def __init__(self, threads: int, waiting: int) -> None:
        self.threads = threads or usable_cores()
        spare = min(waiting, math.ceil(self.threads / 4))
        self._slots = self._free = self.threads + spare
        self._waiting = waiting - spare
        self._line: collections.deque[asyncio.Future[None]] = collections.deque()
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="kdf", initializer=_give_way)
        self._seconds = FIRST_GUESS  # that a key takes, a moving average
        self._stopping = False

    def start(self) -> None:
        """Start all threads now, so that no request finds later that there is none to be had.

        Raises:
            ThreadsError: The system refuses a thread.

        """
        start_threads(self._executor, self.threads)
        metrics.KDF_THREADS.set(self.threads)
        metrics.KDF_PLACES.set(self._slots + self._waiting)

    def check(self) -> None:
        """Raise DrainingError if the pool is being stopped, BusyError if neither a slot nor a place in line is free."""
        if self._stopping:
            raise DrainingError
        if not self._free and len(self._line) >= self._waiting:
            raise BusyError(self.retry_after())

    def retry_after(self) -> int:
        """Estimate in how many whole seconds all that is in the pool now will be through."""
        ahead = self._slots - self._free + len(self._line)
        return max(1, math.ceil(ahead / self.threads * self._seconds))

    @asynccontextmanager
    async def slot(self, gone: asyncio.Future[None]) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the time of the block.

        Args:
            gone: Done when nobody waits for the answer any more; then the request leaves the line.

        Raises:
            BusyError: Slots and line are full.
            DrainingError: The pool is being stopped.
            ClientGoneError: `gone` was done before the slot came.

        """
        await self._enter(gone)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, gone: asyncio.Future[None]) -> None:
        try:
            self.check()
        except BusyError:
            metrics.KDF_REFUSED.inc()
            raise
        if gone.done():
            raise ClientGoneError
        if self._free:  # nobody waits then
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def give_up(_: asyncio.Future[None]) -> None:
            if not place.done():
                place.set_exception(ClientGoneError())

        gone.add_done_callback(give_up)
        self._line.append(place)
        try:
            with metrics.KDF_QUEUED.track_inprogress():
                await place
            if gone.done():
                raise ClientGoneError
        except BaseException:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._leave()  # gone or cancelled in the moment in which the slot came
            with suppress(ValueError):
                self._line.remove(place)
            raise
        finally:
            gone.remove_done_callback(give_up)

    def _leave(self) -> None:
        """Pass the slot on to the first in line."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a blocking function in a thread of the pool. Hold a `slot` around it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, function, args)

    def _timed(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        started = time.perf_counter()
        try:
            with metrics.KDF_BUSY.track_inprogress():
                return function(*args)
        finally:
            seconds = time.perf_counter() - started
            metrics.KDF_DURATION.observe(seconds)
            self._seconds += NEWEST * (seconds - self._seconds)

    def stop(self) -> None:
        """Send away all who wait, and all who come from now on, with DrainingError. Slots that are held stay held."""
        self._stopping = True
        self.dismiss(DrainingError)

    def dismiss(self, error: type[UnavailableError]) -> None:
        """Send away all who wait now with an error."""
        for place in self._line:
            if not place.done():
                place.set_exception(error())
        self._line.clear()

    def close(self) -> None:
        """Let the hashes that run finish, and drop the others."""
        self._executor.shutdown(wait=False, cancel_futures=True)
