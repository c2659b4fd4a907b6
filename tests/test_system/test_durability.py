"""What was answered stays so, whatever crashes; what cannot be done is answered 503, and works again by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mongod import Mongod, wait_for
from tests.service import Service, draw_master_key, running
from tests.test_system.conftest import Database


def test_kill_of_the_service_loses_nothing(mongod: Database, tmp_path: Path) -> None:
    """After kill -9 of the service unread secrets are there, read ones stay read, and attempts stay taken."""
    with running(tmp_path, {"MONGODB_URL": mongod.url}) as service:
        waiting, was_read = service.generate("waits"), service.generate()
        service.read(was_read["secret_key"])
        service.read(waiting["secret_key"], "a wrong guess")

        service.kill()
        service.start()

        assert service.receipt(waiting["receipt_key"])["attempts_left"] == 9
        assert service.read(was_read["secret_key"]).status == 404
        assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}


@pytest.mark.own_database
def test_database_killed_and_back(own_mongod: Mongod, tmp_path: Path) -> None:
    """While its database is dead the service answers 503 within seconds, lives, and recovers by itself; all is kept."""
    with running(tmp_path, {"MONGODB_URL": own_mongod.url}) as service:
        waiting, was_read = service.generate("waits"), service.generate("was read")
        service.read(was_read["secret_key"])

        own_mongod.kill()
        away = service.read(waiting["secret_key"])
        live, ready = service.client.get("/health/live"), service.client.get("/health/ready")

        assert (away.status, away.problem) == (503, "database-unavailable")
        assert away.headers["Retry-After"]
        assert (live.status, ready.status) == (200, 503)

        own_mongod.start()
        service.wait_until_ready()
        assert service.read(was_read["secret_key"]).status == 404
        assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}


@pytest.mark.own_database
def test_frozen_database_is_503(own_mongod: Mongod, tmp_path: Path) -> None:
    """A database that does not answer is a 503 after its deadline, not a hang; then work goes on."""
    with running(tmp_path, {"MONGODB_URL": own_mongod.url}) as service:
        created = service.generate()

        own_mongod.pause()
        reading = service.start_read(created["secret_key"])
        live, ready = service.client.get("/health/live"), service.client.get("/health/ready")
        answer = reading.result()
        own_mongod.resume()

        assert (live.status, ready.status) == (200, 503)
        assert (answer.status, answer.problem) == (503, "database-unavailable")
        service.wait_until_ready()
        assert service.read(created["secret_key"]).status == 200


def test_master_key_is_needed(service: Service, mongod: Database, tmp_path: Path) -> None:
    """A service without the key that sealed a secret counts it in its log, and can't open it, at no attempt's cost."""
    created = service.generate()

    with running(tmp_path, {"MONGODB_URL": mongod.url, "MASTER_KEYS": draw_master_key()}) as other:
        answer = other.read(created["secret_key"])
        wait_for(lambda: "which the ring lacks" in other.logged())  # counted in the background
        log = other.logged()

    assert (answer.status, answer.problem) == (503, "unreadable-secret")
    assert re.search(r"[0-9]+ secrets wait under master key [0-9a-f]{16}, which the ring lacks", log)
    assert re.search(r"cannot be opened: the key ring lacks the envelope's master key \(key id [0-9a-f]{16}\)", log)
    assert service.receipt(created["receipt_key"])["attempts_left"] == 10
    assert service.read(created["secret_key"]).status == 200
