"""The service under other servers than its own `serve`: it works, stops, and logs one line a request."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.service import HYPERCORN, HYPERCORN_ALONE, PHRASE, QUART_RUN, running
from tests.test_system.conftest import Database

DEBUG = ("--debug", "run", "--no-reload")
LOGGED = ("--access-logfile", "-", "--log-level", "debug")


@pytest.mark.parametrize(
    "command",
    [
        QUART_RUN,
        (*QUART_RUN[:5], *DEBUG, *QUART_RUN[6:]),
        HYPERCORN,
        (*HYPERCORN_ALONE[:-1], "--worker-class", "uvloop", *LOGGED, HYPERCORN_ALONE[-1]),
        (*HYPERCORN[:-1], "--workers", "2", "--access-logfile", "access.log", HYPERCORN[-1]),
    ],
    ids=[
        "quart run",
        "quart run --debug",
        "hypercorn",
        "hypercorn with uvloop and its own log",
        "hypercorn with two workers",
    ],
)
def test_other_server(mongod: Database, master_key: str, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Under each server the service works, stops with status 0, and logs a line a request, with no key in it."""
    settings = {"MONGODB_URL": mongod.url, "MASTER_KEYS": master_key}
    with running(tmp_path, settings, command) as service:
        created = service.generate()
        look = service.client.get(f"/secrets/{created['secret_key']}?q={created['secret_key']}")
        wrong, right, again = (service.read(created["secret_key"], phrase) for phrase in ("wrong", PHRASE, PHRASE))
        assert service.stop() == 0

        lines = Counter(line for line in service.logged().splitlines() if "/generate" in line)
    access = tmp_path / "access.log"
    assert look.status == 200
    assert [answer.status for answer in (wrong, right, again)] == [403, 200, 404]
    assert lines.total() == 1
    assert not access.exists() or access.read_text() == ""
