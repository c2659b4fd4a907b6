"""The bounded pool in which keys are stretched: bcrypt releases the GIL, so a thread a core is all it can use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from .errors import BusyError

P = ParamSpec("P")
T = TypeVar("T")


class KdfPool:
    """Threads for the KDF, and a bounded number of places in line for them.

    Args:
        threads: How many hashes run at once; 0 for one a core.
        queue: How many more may wait.

    """

    def __init__(self, threads: int, queue: int) -> None:
        threads = threads or os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="kdf")
        self._free = threads + queue

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for the time of the block, or raise BusyError at once where there is none.

        Taking a place comes before taking an attempt, so that a busy server costs nobody one.
        """
        if self._free == 0:
            raise BusyError
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in the pool. Hold a `place` around it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Let what runs finish and drop what waits."""
        self._executor.shutdown(wait=False, cancel_futures=True)
