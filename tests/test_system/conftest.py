"""Fixtures of the tests on real servers. Each worker of pytest-xdist has its own folder, ports and database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pymongo
import pytest

from tests.mongod import DATABASE, Mongod, ReplicaSet
from tests.service import EVERY, Service, draw_master_key, find_leaks, running

# mongod looks each minute for what is over, unless told otherwise.
REAPS_EACH_SECOND = ("--setParameter", "ttlMonitorSleepSecs=1")


@dataclass(frozen=True)
class Database:
    """A database that services may share.

    Args:
        url: Where it is.

    """

    url: str

    def client(self) -> pymongo.MongoClient[dict[str, Any]]:
        """Make a client of it, whose default database is the services'."""
        return pymongo.MongoClient(self.url, tz_aware=True)

    def sibling(self, name: str) -> Database:
        """Return another database on the same server."""
        parts = urlsplit(self.url)
        path = parts.path if len(parts.path) > 1 else f"/{DATABASE}"
        return Database(urlunsplit(parts._replace(path=f"{path}_{name}")))


@pytest.fixture(scope="session", autouse=True)
def nothing_sent_is_logged() -> Iterator[None]:
    """See, when all is over, that no log of any service holds what was sent to any."""
    yield
    sent = {text for service in EVERY for text in service.sent if len(text) > 12}
    assert find_leaks(sent, "".join(service.logged() for service in EVERY)) == []


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A standalone: the suite's own, which reaps each second, or the server that TEST_MONGODB_URL names."""
    if url := os.environ.get("TEST_MONGODB_URL"):
        yield Database(url).sibling(os.environ.get("PYTEST_XDIST_WORKER", "alone"))
        return
    with Mongod(tmp_path_factory.mktemp("mongod"), *REAPS_EACH_SECOND) as own:
        yield Database(own.url)


@pytest.fixture(scope="session")
def replica_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """Three members, with authentication on."""
    with ReplicaSet(tmp_path_factory.mktemp("replica-set"), *REAPS_EACH_SECOND) as own:
        yield own


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[Mongod]:
    """A standalone of the test's own, to be killed, frozen, or told to fail."""
    with Mongod(tmp_path / "mongod") as own:
        yield own


@pytest.fixture(scope="session")
def master_key() -> str:
    """The master key of the services that share a database."""
    return draw_master_key()


@pytest.fixture(scope="session")
def service(mongod: Database, master_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on the standalone. Tests leave it as it was: another may use it next."""
    settings = {"MONGODB_URL": mongod.url, "MASTER_KEYS": master_key}
    with running(tmp_path_factory.mktemp("service"), settings) as service:
        yield service
