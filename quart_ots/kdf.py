"""The bounded pool in which keys are stretched: bcrypt releases the GIL, so a thread a core is all it can use.

On Linux these threads give way to all others of the service: a hash of 60 ms does not mind to wait for the millisecond
that an answer takes, but the answer minds to wait for the hash.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from . import metrics
from .errors import BusyError

P = ParamSpec("P")
T = TypeVar("T")

# Seconds that a key is taken to need until one has shown it: bcrypt's at cost 10.
FIRST_GUESS = 0.065
# The share of the newest in the average.
NEWEST = 0.1
# Steps of nice(2) down from the process's own: a tenth of a core's time beside a thread that wants all of it. With 19,
# a hundredth, one that is held up on its way would hold up the service with the GIL that it has.
NICENESS = 10


def _give_way() -> None:
    """Lower the priority of the calling thread, and of no other: on Linux, each thread has its own, see sched(7)."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it; then answers are slower while the pool is full
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


class KdfPool:
    """Threads for the KDF, and a bounded number of places in line for them.

    Args:
        threads: How many hashes run at once; 0 for one a core.
        queue: How many more may wait.

    """

    def __init__(self, threads: int, queue: int) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="kdf", initializer=_give_way)
        self._places = self._free = self._threads + queue
        self._seconds = FIRST_GUESS  # a key's, on the average of late
        metrics.KDF_THREADS.set(self._threads)
        metrics.KDF_PLACES.set(self._places)

    def check(self) -> None:
        """Raise BusyError where there is no place."""
        if self._free == 0:
            raise BusyError(self.patience())

    def patience(self) -> int:
        """Estimate after how many whole seconds all who hold a place now will be through."""
        return max(1, math.ceil((self._places - self._free) / self._threads * self._seconds))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for the time of the block, or raise BusyError at once where there is none.

        Taking a place comes before taking an attempt, so that a busy server costs nobody one.
        """
        try:
            self.check()
        except BusyError:
            metrics.KDF_REFUSED.inc()
            raise
        self._free -= 1
        try:
            with metrics.KDF_QUEUED.track_inprogress():
                yield
        finally:
            self._free += 1

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in the pool. Hold a `place` around it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, function, args, kwargs)

    def _timed(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        started = time.perf_counter()
        metrics.KDF_QUEUED.dec()
        try:
            with metrics.KDF_BUSY.track_inprogress():
                return function(*args, **kwargs)
        finally:
            metrics.KDF_QUEUED.inc()
            seconds = time.perf_counter() - started
            metrics.KDF_DURATION.observe(seconds)
            self._seconds += NEWEST * (seconds - self._seconds)

    def close(self) -> None:
        """Let what runs finish and drop what waits."""
        self._executor.shutdown(wait=False, cancel_futures=True)
