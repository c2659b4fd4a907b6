"""Creates and reads a second, and what they are measured by: one part after the other, in rounds."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import bcrypt

from bench.pace import Question
from bench.stand import BARE, Load, creates, load, reads
from tests.mongod import Mongod
from tests.service import Service

# How the bare app can take a body: by a model of pydantic's, a dataclass, or unseen.
PLAIN = ("plain", "dataclasses", "unvalidated")


class Hashes(NamedTuple):
    """What the cores do when they do nothing else."""

    rate: float  # hashes a second, on all cores
    cpu: float  # ms of CPU time for one


class Rates(NamedTuple):
    """What a round measured, of the service or of the bare app."""

    create: Load
    read: Load


def hash_all(cost: int, seconds: float) -> Hashes:
    """Hash on all cores for a time."""
    salt, until = bcrypt.gensalt(cost), time.monotonic() + seconds

    def work(_: int) -> int:
        number = 0
        while time.monotonic() < until:
            bcrypt.hashpw(b"as long as a digest in base64 will be, is it", salt)
            number += 1
        return number

    started, cpu = time.monotonic(), time.process_time()
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(work, range(threads)))
    return Hashes(total / (time.monotonic() - started), 1000 * (time.process_time() - cpu) / total)


class Stand:
    """The service and the bare app, each on a database of the same server, for the time of a block.

    Args:
        folder: For all that they write.
        cost: bcrypt's, of both.
        bare: Whether the bare app is wanted.
        queue: How many requests may wait for a hashing thread. Loads from one address may hold a quarter of the places.

    """

    def __init__(self, folder: Path, cost: int, bare: bool = True, queue: int = 1000) -> None:
        self.folder, self.cost = folder, cost
        self._bare, self._queue = bare, queue

    def __enter__(self) -> Stand:
        """Start all, and warm it up; where that fails, what was started is stopped."""
        settings = {"BCRYPT_COST": str(self.cost), "KDF_QUEUE": str(self._queue), "TRUSTED_PROXIES": "1"}
        with contextlib.ExitStack() as stack:
            self.mongo = Mongod(self.folder / "mongod")
            stack.callback(self.mongo.kill)
            os.environ |= {"BARE_URL": self.mongo.url, "BARE_COST": str(self.cost)}
            self.service = Service(self.folder, {"MONGODB_URL": self.mongo.url, **settings})
            stack.callback(self.service.stop)
            self.rates(self.service, 2)
            if self._bare:
                self.bare = Service(self.folder, {}, BARE)
                stack.callback(self.bare.stop)
                self.rates(self.bare, 2)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all that was started."""
        self._stack.close()

    def send(self, service: Service, questions: list[Question], seconds: float, expected: int) -> Load:
        """Put one of the two under load."""
        pids = {"service": service.process.pid, "database": self.mongo.process.pid}
        # A few keep the threads that hash busy; at the least cost there is more to be kept busy.
        return load(self.folder, service.url, questions, seconds, pids, expected, 32 if self.cost < 8 else 8)

    def rates(self, service: Service, seconds: float) -> Rates:
        """Create for a time, then read what was created, for a shorter time: it must not run out."""
        create = self.send(service, creates(), seconds, 201)
        return Rates(create, self.send(service, reads(create.answers), max(1, 0.7 * seconds), 200))

    def plain(self, seconds: float) -> dict[str, Load]:
        """Post to the bare app's routes that do nothing."""
        return {name: self.send(self.bare, [("POST", f"/{name}", creates()[0][2])], seconds, 200) for name in PLAIN}
