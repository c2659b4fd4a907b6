"""What a client can take, and what is left for others."""

from __future__ import annotations

import re
import resource
import socket
import time
from collections import Counter
from pathlib import Path

from tests.service import SERVE, Service, running
from tests.test_system.conftest import Database


def test_budget_of_a_client(mongod: Database, tmp_path: Path) -> None:
    """A client gets its 600 at once and is then told when to come back; forged addresses gain nothing."""
    with running(tmp_path, {"MONGODB_URL": mongod.url, "RATE_LIMIT": "600"}) as service:
        started = time.monotonic()
        asked = [
            service.client.submit("GET", "/receipts/none", headers={"X-Forwarded-For": f"10.0.{number % 4}.{number}"})
            for number in range(800)
        ]
        answers = [answer.result() for answer in asked]
        regained = 10 * (time.monotonic() - started)

        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) <= {404, 429}
        assert 600 <= statuses[404] <= 600 + regained + 1
        assert {answer.headers["Retry-After"] for answer in answers if answer.status == 429} <= {"1"}
        assert service.client.get("/health/live").status == 200


def test_full_pool_leaves_health_alone(mongod: Database, tmp_path: Path) -> None:
    """With all hashing slots and the line full, more creators get 503, health answers, and the line is served."""
    settings = {"MONGODB_URL": mongod.url, "BCRYPT_COST": "12", "KDF_THREADS": "1", "KDF_QUEUE": "3"}
    with running(tmp_path, settings) as service:
        creations = [service.start_generate(f"one of many {number}") for number in range(30)]
        live = service.client.get("/health/live")
        answers = [creation.result() for creation in creations]

        statuses = Counter(answer.status for answer in answers)
        assert live.status == 200
        assert set(statuses) == {201, 503}
        assert statuses[201] >= 4
        refused = [answer for answer in answers if answer.status == 503]
        assert {answer.problem for answer in refused} == {"busy"}
        assert all(answer.headers["Retry-After"] for answer in refused)


def test_open_files_are_raised_to_the_hard_limit(mongod: Database, tmp_path: Path) -> None:
    """However low the shell's soft limit of open files is, the service takes what it may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(most, 4000)
    with running(tmp_path, {"MONGODB_URL": mongod.url}, ("prlimit", f"--nofile=200:{hard}", *SERVE)) as service:
        limits = Path(f"/proc/{service.process.pid}/limits").read_text()

    assert re.search(rf"Max open files +{hard} +{hard}", limits)


def test_many_idle_connections(service: Service) -> None:
    """Hundreds of connections that send nothing keep nobody from being served, and are closed after a while."""
    idle = [socket.create_connection(("127.0.0.1", service.port), timeout=60) for _ in range(300)]
    try:
        answer = service.read(service.generate()["secret_key"])

        assert answer.status == 200
        assert [connection.recv(1) for connection in (idle[0], idle[-1])] == [b"", b""]
    finally:
        for connection in idle:
            connection.close()
