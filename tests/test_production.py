"""How a service process behaves among others: workers, the port for metrics, its log, its end."""

import contextlib
import json
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.service import HYPERCORN, PHRASE, Mongo, Service, free_port, running

TWO_WORKERS = tuple("2" if part == "0" else part for part in HYPERCORN)


def figure(text: str, name: str) -> float:
    """Give a sample's value; 0 if it is not there."""
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} ")), 0)


def test_metrics_of_two_workers(mongo: Mongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of two workers is asked, on either port, its figures are those of both."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "figures"))
    (tmp_path / "figures").mkdir()
    # What a worker that died has left.
    stale = tmp_path / "figures" / "gauge_livesum_4194303.db"
    stale.touch()
    port = free_port()
    keys = {"MASTER_KEYS": "A" * 43 + "=", "KDF_THREADS": "2", "METRICS_BIND": f"127.0.0.1:{port}"}
    with running(tmp_path, {"MONGODB_URL": mongo.url, **keys}, *TWO_WORKERS) as service:
        for number in range(20):
            service.generate(f"a secret for the workers {number}")
        texts = [httpx.get(f"http://127.0.0.1:{port}/metrics").text for _ in range(20)]

        assert {figure(text, 'quart_ots_secrets_total{step="created"}') for text in texts} == {20}
        assert {figure(text, "quart_ots_kdf_threads") for text in texts} == {4}
        assert all(figure(text, "process_resident_memory_bytes") > 60_000_000 for text in texts)
        assert not stale.exists()
        workers = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        assert len(workers) >= 2


def test_workers_without_a_folder_are_told(mongo: Mongo, tmp_path: Path) -> None:
    """Workers whose figures are not added up say so in a warning."""
    keys = {"MASTER_KEYS": "A" * 43 + "="}
    with running(tmp_path, {"MONGODB_URL": mongo.url, **keys}, *TWO_WORKERS) as service:
        assert "set PROMETHEUS_MULTIPROC_DIR" in service.log.read_text()


def test_metrics_on_their_own_port(mongo: Mongo, tmp_path: Path) -> None:
    """METRICS_BIND serves the metrics there alone, whatever is asked, and what is sent there is not logged."""
    port = free_port()
    with running(tmp_path, {"MONGODB_URL": mongo.url, "METRICS_BIND": f"127.0.0.1:{port}"}) as service:
        created = service.generate()
        own = httpx.get(f"http://127.0.0.1:{port}/metrics?{created['secret_key']}")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"NONSENSE {created['secret_key']}\r\n\r\n".encode())
            connection.recv(1000)

        assert figure(own.text, 'quart_ots_secrets_total{step="created"}') == 1
        assert service.client.get("/metrics").status_code == 404


def test_taken_metrics_port(mongo: Mongo, tmp_path: Path) -> None:
    """A port for metrics that is taken stops the start with one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = {"MONGODB_URL": mongo.url, "METRICS_BIND": f"127.0.0.1:{taken.getsockname()[1]}"}
        with running(tmp_path, settings, wait=False) as service:
            assert service.process.wait(30) == 1
            log = service.log.read_text()

    assert "quart_ots: QUART_OTS_METRICS_BIND: Address already in use" in log
    assert "Traceback" not in log


def test_every_line_is_json(mongo: Mongo, tmp_path: Path) -> None:
    """Off a terminal each line is JSON, the server's own too, and a request's has its id, as its answer does."""
    with running(tmp_path, {"MONGODB_URL": mongo.url}) as service:
        created = service.generate()
        answer = service.client.get(f"/receipts/{created['receipt_key']}", headers={"X-Request-ID": "try-1"})
        service.stop()
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]

    assert answer.headers["X-Request-ID"] == "try-1"
    (line,) = [line for line in lines if line.get("request_id") == "try-1"]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/receipts/<receipt_key>", 200)
    assert line["bytes"] == len(answer.content)
    assert {"time", "level", "milliseconds"} <= set(line)
    assert any(line["logger"] == "hypercorn.error" and "Running on" in line["message"] for line in lines)


def test_level_and_format(mongo: Mongo, tmp_path: Path) -> None:
    """LOG_LEVEL leaves out what is below it, the server's lines too; LOG_FORMAT=console writes text."""
    settings = {"MONGODB_URL": mongo.url, "LOG_LEVEL": "warning"}
    with running(tmp_path, settings) as service:
        service.generate()
        assert "request" not in service.log.read_text()
        assert "Running on" not in service.log.read_text()
        service.stop()
        service.environment.update(QUART_OTS_LOG_LEVEL="info", QUART_OTS_LOG_FORMAT="console")
        before = len(service.log.read_text())
        service.start()
        service.generate()
        service.stop()  # a request's line is written after its answer

        lines = service.log.read_text()[before:].splitlines()
        assert any("request" in line and "route=/generate" in line for line in lines)
        assert not any(line.startswith("{") for line in lines)


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "quart", "--app", "quart_ots", "run", "--port", "{port}"),
        (*HYPERCORN[:9], "--access-logfile", "-", "quart_ots:create_app()"),
    ],
    ids=["quart run", "hypercorn with its access log on the terminal"],
)
def test_one_line_a_request(mongo: Mongo, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Where the server would log requests too, there is one line for each all the same."""
    with running(tmp_path, {"MONGODB_URL": mongo.url}, *command) as service:
        service.generate()
        service.stop()

        assert service.log.read_text().count("/generate") == 1


def test_hang_up_is_told(service: Service) -> None:
    """A client that hangs up before its answer has a line too, with no status."""

    def is_told() -> bool:
        return '"route": "/generate", "status": "-"' in service.log.read_text()

    body = json.dumps({"secret": "a secret", "passphrase": PHRASE}).encode()
    deadline = time.monotonic() + 30
    while not is_told() and time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            head = (
                f"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            connection.sendall(f"{head}\r\n\r\n".encode() + body[:9])
        time.sleep(0.1)

    assert is_told()


def test_drain(mongo: Mongo, tmp_path: Path) -> None:
    """With DRAIN, SIGTERM first makes the service not ready while it still serves, then ends it with status 0."""
    with running(tmp_path, {"MONGODB_URL": mongo.url, "DRAIN": "300"}) as service:
        service.process.terminate()
        deadline = time.monotonic() + 10
        while (ready := service.client.get("/health/ready")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)

        assert (ready.status_code, ready.json()["type"]) == (503, "urn:quart-ots:problem:draining")
        assert ready.headers["Retry-After"]
        assert service.client.get("/health/live").status_code == 200
        assert service.read(service.generate()["secret_key"]).status_code == 200
        assert service.stop() == 0  # a second SIGTERM is for the impatient
        assert "draining: not ready, but serving, for 300 s" in service.log.read_text()


def test_drain_ends_by_itself(mongo: Mongo, tmp_path: Path) -> None:
    """When the seconds are over, the service ends with status 0."""
    with running(tmp_path, {"MONGODB_URL": mongo.url, "DRAIN": "1"}) as service:
        service.process.terminate()

        assert service.process.wait(30) == 0


def test_stop_answers_what_was_taken(mongo: Mongo, tmp_path: Path) -> None:
    """On SIGTERM creations in flight are answered, nothing new is taken, the status is 0, and all can be read after."""
    settings = {"MONGODB_URL": mongo.url, "BCRYPT_COST": "11", "KDF_THREADS": "2"}
    with running(tmp_path, settings) as service:
        made: list[dict[str, str]] = []
        with ThreadPoolExecutor(10) as threads:
            creations = [threads.submit(service.generate, f"in flight {number}") for number in range(10)]
            deadline = time.monotonic() + 20
            while "quart_ots_kdf_queued 0.0" in service.client.get("/metrics").text and time.monotonic() < deadline:
                time.sleep(0.01)
            status = service.stop()
            for creation in creations:
                with contextlib.suppress(httpx.TransportError):  # had not been taken yet
                    made.append(creation.result())

        assert status == 0
        assert made
        with pytest.raises(httpx.ConnectError):
            service.client.get("/health/live")
        service.start()
        statuses = Counter(service.read(created["secret_key"]).status_code for created in made)
        assert statuses == {200: len(made)}
