"""The log: one stream, a line a request, and nothing in it that was sent."""

from __future__ import annotations

import json
from pathlib import Path

from tests.mongod import wait_for
from tests.service import Service, find_leaks, running
from tests.test_system.conftest import Database


def test_every_line_is_json(mongod: Database, tmp_path: Path) -> None:
    """Off a terminal each line is JSON, the server's own too, and a request's has its id, as its answer does."""
    with running(tmp_path, {"MONGODB_URL": mongod.url}) as service:
        created = service.generate()
        answer = service.client.get(f"/receipts/{created['receipt_key']}", headers={"X-Request-ID": "try-1"})
        service.stop()
        lines = [json.loads(line) for line in service.logged().splitlines()]

    assert answer.headers["X-Request-ID"] == "try-1"
    (line,) = [line for line in lines if line.get("request_id") == "try-1"]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/receipts/<receipt_key>", 200)
    assert line["bytes"] == len(answer.content)
    assert {"time", "level", "milliseconds"} <= set(line)
    assert any(line["logger"] == "hypercorn.error" and "Running on" in line["message"] for line in lines)


def test_level(mongod: Database, tmp_path: Path) -> None:
    """LOG_LEVEL leaves out what is below it, from the start to the end, and the server's lines too."""
    with running(tmp_path, {"MONGODB_URL": mongod.url, "LOG_LEVEL": "error"}) as service:
        service.generate()
        assert service.stop() == 0

        assert service.logged() == ""


def test_routes_and_not_paths(service: Service) -> None:
    """A line shows routes and statuses, and no path, query, header or address."""
    before = len(service.logged())
    created = service.generate()

    service.client.get(f"/secrets/{created['secret_key']}?a=b", headers={"User-Agent": "an agent"})
    service.client.get(f"/elsewhere/{created['secret_key']}")

    wait_for(lambda: '"route": "-", "status": 404' in service.logged()[before:])  # written after the answer
    log = service.logged()[before:]
    assert '"method": "POST", "route": "/generate", "status": 201' in log
    assert '"method": "GET", "route": "/secrets/<secret_key>", "status": 200' in log
    assert not any(text in log for text in ("127.0.0.1", "an agent", "a=b", "elsewhere"))


def test_leaks_are_found() -> None:
    """What the suite looks for in logs it finds: a key within other characters, and any other text."""
    log = f'{{"path": "/x{"k" * 43}"}}\na phrase\n'

    assert find_leaks(["k" * 43, "u" * 43, "a phrase", "not there"], log) == ["k" * 43, "a phrase"]
