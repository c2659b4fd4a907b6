"""A stop loses nothing: whoever was answered 200 has the secret, whoever was not can still read it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.client import LOST, Answer
from tests.mongod import wait_for
from tests.service import HYPERCORN, HYPERCORN_ALONE, SERVE, Service, running
from tests.test_system.conftest import Database

# A hash takes a quarter of a second of one core: those who are in line take three times the grace of 7 s.
COST, SECRETS, READERS = "12", 5, 100
# Seconds. A bound for what hangs, far above the grace and one hash.
HANGS = 40
SERVERS = ("serve", "hypercorn with its worker process", "hypercorn --workers 0")


@pytest.mark.parametrize("command", [SERVE, HYPERCORN, HYPERCORN_ALONE], ids=SERVERS)
def test_stop_under_readers(
    service: Service, mongod: Database, master_key: str, tmp_path: Path, command: Sequence[str]
) -> None:
    """With more readers in line than the grace suffices for, each is answered 200, or 503 and can read it later."""
    settings = {"MONGODB_URL": mongod.url, "MASTER_KEYS": master_key, "BCRYPT_COST": COST, "KDF_THREADS": "1"}
    with running(tmp_path, settings, command) as stopped:
        creations = [stopped.start_generate(f"the secret {number}") for number in range(SECRETS)]
        created = [stopped.note(creation.result()) for creation in creations]
        keys = [one["secret_key"] for one in created] * (READERS // SECRETS)
        readings = [stopped.start_read(key) for key in keys]
        wait_for(lambda: any(reading.done() for reading in readings))
        waiting = stopped.figure("quart_ots_kdf_queued")

        stopped.process.terminate()
        status = stopped.process.wait(HANGS)

        answers = [reading.result() for reading in readings]
        was_read = [key for key, answer in zip(keys, answers, strict=True) if answer.status == 200]
        outcomes = {
            (answer.status, answer.problem)
            for key, answer in zip(keys, answers, strict=True)
            if answer.status != 404 or key not in was_read
        }
        assert waiting > READERS / 3
        assert status == 0
        assert len(was_read) == len(set(was_read)) > 0
        assert outcomes == {(200, ""), (503, "draining")}
        assert all(answer.headers["Retry-After"] for answer in answers if answer.status == 503)
        assert "Traceback" not in stopped.logged()
        assert "unexpected" not in stopped.logged()
    for one in created:
        state = service.receipt(one["receipt_key"])["state"]
        assert state == ("read" if one["secret_key"] in was_read else "pending")
        assert service.read(one["secret_key"]).status == (404 if one["secret_key"] in was_read else 200)


def test_stop_answers_those_in_line_at_once(
    service: Service, mongod: Database, master_key: str, tmp_path: Path
) -> None:
    """Creators who wait for a thread are told 503 while the hash before them still runs, which then is answered."""
    settings = {"MONGODB_URL": mongod.url, "MASTER_KEYS": master_key, "BCRYPT_COST": "13", "KDF_THREADS": "1"}
    with running(tmp_path, settings) as stopped:
        creations = [stopped.start_generate(f"in flight {number}") for number in range(10)]
        order: list[Future[Answer]] = []
        for creation in creations:
            creation.add_done_callback(order.append)
        # All have come, and two have a slot: one is hashed, and one is next.
        wait_for(lambda: stopped.figure("quart_ots_kdf_queued") + sum(map(Future.done, creations)) >= 8)

        stopped.process.terminate()
        status = stopped.process.wait(HANGS)
        wait_for(lambda: len(order) == len(creations))
        answers = [creation.result() for creation in order]

        assert status == 0
        assert {answer.status for answer in answers} == {201, 503}
        # But for what was answered before the stop, those who have waited are answered before those who were hashed.
        assert answers[-1].status == 201
        with pytest.raises(LOST):
            stopped.client.get("/health/live")
        for answer in answers:
            if answer.status == 201:
                assert service.read(stopped.note(answer)["secret_key"]).status == 200


@pytest.mark.parametrize("command", [SERVE, HYPERCORN, HYPERCORN_ALONE], ids=SERVERS)
def test_client_still_sending_at_the_end(mongod: Database, tmp_path: Path, command: Sequence[str]) -> None:
    """A client that is slow to send its body is told 503 when the grace is over, and does not keep the service.

    The grace is 7 s, but 3 s under a Hypercorn that is not told otherwise.
    """
    with running(tmp_path, {"MONGODB_URL": mongod.url}, command) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=HANGS) as slow:
            slow.sendall(
                b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            wait_for(lambda: connections(service) > 0)

            service.process.terminate()
            answer = b"".join(iter(lambda: slow.recv(65_536), b""))

        assert service.process.wait(HANGS) == 0
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"urn:quart-ots:problem:draining" in answer
        assert "Traceback" not in service.logged()


def connections(service: Service) -> int:
    """Count the connections that a service has accepted."""
    own = f":{service.port:04X} "
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(own in line.split(None, 2)[1] + " " and line.split()[3] == "01" for line in lines)


def test_drain(mongod: Database, tmp_path: Path) -> None:
    """With DRAIN, SIGTERM first makes the service not ready while it still serves, then ends it with status 0."""
    with running(tmp_path, {"MONGODB_URL": mongod.url, "DRAIN": "300"}) as service:
        service.process.terminate()
        wait_for(lambda: service.client.get("/health/ready").status == 503)
        ready = service.client.get("/health/ready")

        assert ready.problem == "draining"
        assert ready.headers["Retry-After"]
        assert service.client.get("/health/live").status == 200
        assert service.read(service.generate()["secret_key"]).status == 200
        assert service.stop() == 0  # a second SIGTERM cuts it short
        assert "draining: serving for 300 s more, but not ready" in service.logged()


def test_drain_ends_by_itself(mongod: Database, tmp_path: Path) -> None:
    """When the seconds are over, the service ends with status 0, under another server too."""
    with running(tmp_path, {"MONGODB_URL": mongod.url, "DRAIN": "1"}, HYPERCORN_ALONE, covered=True) as service:
        service.process.terminate()

        assert service.process.wait(HANGS) == 0


def test_ctrl_c(mongod: Database, tmp_path: Path) -> None:
    """Ctrl-C ends `serve` as SIGTERM does, and leaves no traceback on the terminal."""
    with running(tmp_path, {"MONGODB_URL": mongod.url}, covered=True) as service:
        service.process.send_signal(signal.SIGINT)

        assert service.process.wait(HANGS) == 0
        assert "Traceback" not in service.logged()
