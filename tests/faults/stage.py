"""Services on a database of their own, for the time of an attack."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tests.mongod import Mongod, ReplicaSet
from tests.service import EVERY, PHRASE, SERVE, Service, draw_master_key, running

D = TypeVar("D", Mongod, ReplicaSet)


class AddService(Protocol):
    """See `Stage`."""

    def __call__(self, url: str | None = None, begun: Callable[[Service], object] | None = None) -> Service:
        """Start it, and wait until it is ready."""


@dataclass
class Stage(Generic[D]):
    """A database and the services on it, which share a key ring.

    Args:
        database: A standalone or a replica set.
        services: Those that run.
        folder: For what an attack writes.
        add_service: Starts another service. Takes the database's URL if it is another one, and what to call with the
            service when its process is there, before it connects.

    """

    database: D
    services: list[Service]
    folder: Path
    add_service: AddService

    @property
    def service(self) -> Service:
        """The first."""
        return self.services[0]

    def writable(self) -> bool:
        """Return whether a secret can be created."""
        body = {"secret": "a secret to try with", "passphrase": PHRASE}
        return self.service.client.post("/generate", json=body).status == 201


@contextlib.contextmanager
def staged(number: int = 1, *options: str, command: Sequence[str] = SERVE, **settings: str) -> Iterator[Stage[Mongod]]:
    """Start a standalone and services for the time of a block.

    Args:
        number: How many services.
        options: mongod's.
        command: How to start a service.
        settings: The services', without the prefix.

    """
    with (
        tempfile.TemporaryDirectory() as name,
        Mongod(Path(name) / "mongod", *options) as mongod,
        _staged_on(mongod, Path(name), number, command, settings) as stage,
    ):
        yield stage


@contextlib.contextmanager
def staged_on_set(
    number: int = 1, *options: str, partitions: bool = False, command: Sequence[str] = SERVE, **settings: str
) -> Iterator[Stage[ReplicaSet]]:
    """Start a replica set of three and services for the time of a block; see `staged` and `ReplicaSet`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        folder.mkdir()
        with (
            ReplicaSet(folder, *options, partitions=partitions) as replica_set,
            _staged_on(replica_set, Path(name), number, command, settings) as stage,
        ):
            yield stage


@contextlib.contextmanager
def lent(stage: Stage[D] | None, staging: AbstractContextManager[Stage[D]]) -> Iterator[Stage[D]]:
    """Use a stage that stands already, or make one for the time of a block."""
    if stage is not None:
        yield stage
        return
    with staging as own:
        yield own


def staged_on(a_set: bool) -> AbstractContextManager[Stage[Any]]:
    """Start a replica set or a standalone, and no service yet."""
    return staged_on_set(0) if a_set else staged(0)


@contextlib.contextmanager
def _staged_on(
    database: D, folder: Path, number: int, command: Sequence[str], settings: dict[str, str]
) -> Iterator[Stage[D]]:
    given = {"MASTER_KEYS": draw_master_key(), "KDF_QUEUE": "1000", **settings}
    services: list[Service] = []
    with contextlib.ExitStack() as stack:

        def add_service(url: str | None = None, begun: Callable[[Service], object] | None = None) -> Service:
            own = folder / str(len(services))
            own.mkdir()
            told = {"MONGODB_URL": url or database.url, **given}
            service = stack.enter_context(running(own, told, command, wait=False))
            services.append(service)
            if begun is not None:
                begun(service)
            service.wait_until_ready()
            return service

        for _ in range(number):
            add_service()
        yield Stage(database, services, folder, add_service)
    # Their logs have been searched, and go with the folder.
    for service in services:
        EVERY.remove(service)
