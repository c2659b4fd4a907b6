"""Services on a database of their own, for the time of an attack."""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quart_ots.crypto import new_master_key
from tests.service import AS_IN_PRODUCTION, PHRASE, Mongo, Service, quick_database, running

# Milliseconds. As a failpoint changes no topology, SecantusDB does not tell waiting drivers that all is well again.
HEARTBEAT = "&heartbeatFrequencyMS=500"


# Set by the whole suite, not by the tests: it has a lot to ask of a database.
QUICK = "FAULTS_QUICK_DATABASE"


def draw_master_key() -> str:
    """Draw a master key, as a key file has it."""
    return base64.b64encode(new_master_key()).decode()


def database(folder: Path) -> Mongo:
    """Start a database: of the whole suite, the quickest there is."""
    return quick_database(folder) if QUICK in os.environ else Mongo(folder)


@dataclass
class Stage:
    """A database and the services on it, which share a key ring.

    Args:
        mongo: The database.
        services: Those that run.
        folder: For what an attack writes.
        add_service: Starts another service.

    """

    mongo: Mongo
    services: list[Service]
    folder: Path
    add_service: Callable[[], None]

    @property
    def service(self) -> Service:
        """The first."""
        return self.services[0]

    def writable(self) -> bool:
        """Say whether a secret can be created."""
        body = {"secret": "a secret to try by", "passphrase": PHRASE}
        return self.service.client.post("/generate", json=body).status_code == 201


@contextlib.contextmanager
def staged(
    number: int = 1,
    *options: str,
    command: tuple[str, ...] = AS_IN_PRODUCTION,
    url: str | None = None,
    reference: bool = False,
    **settings: str,
) -> Iterator[Stage]:
    """Start a database and services for the time of a block.

    Args:
        number: How many services.
        options: The database's.
        command: The services', see tests/service.py.
        url: Where the services find the database, unless directly.
        reference: Whether it must be SecantusDB's Python server, as with options, for what its Rust server may lack.
        settings: The services', without the prefix.

    """
    keys = draw_master_key()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        mongo = Mongo(folder, *options) if reference or options else database(folder)
        stack.callback(lambda: mongo.kill())
        given = {"MONGODB_URL": (url or mongo.url) + HEARTBEAT, "MASTER_KEYS": keys, "KDF_QUEUE": "1000", **settings}
        services: list[Service] = []

        def add_service() -> None:
            own = folder / str(len(services))
            own.mkdir()
            services.append(stack.enter_context(running(own, given, *command, covered=False)))

        for _ in range(number):
            add_service()
        yield Stage(mongo, services, folder, add_service)
