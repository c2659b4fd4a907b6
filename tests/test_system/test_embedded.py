"""A service without a URL: its own database ends with it, comes back with all data, and is nobody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.mongod import free_port, wait_for
from tests.service import HYPERCORN, HYPERCORN_ALONE, QUART_RUN, SERVE, environment_of, running

pytestmark = pytest.mark.own_database


def ended(pid: int) -> bool:
    """Return whether a process is no more, or nothing but its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between the opening and the reading
        return True


def test_data_and_key_outlive_restarts_and_crashes(tmp_path: Path) -> None:
    """Unread secrets are there and read ones stay read after an orderly stop and after kill -9."""
    with running(tmp_path, {}) as service:
        for end in (service.stop, service.kill):
            waiting, was_read = service.generate("waits"), service.generate()
            service.read(was_read["secret_key"])
            database = service.database_process()

            end()

            wait_for(lambda: ended(database), 10)  # noqa: B023
            service.start()
            assert service.read(was_read["secret_key"]).status == 404
            assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}


def test_database_is_frozen_and_dies(tmp_path: Path) -> None:
    """The service outlives its database: not ready while that is frozen; when it dies, another starts with all data."""
    with running(tmp_path, {}) as service:
        waiting, was_read = service.generate("waits"), service.generate()
        service.read(was_read["secret_key"])
        first = service.database_process()

        os.kill(first, signal.SIGSTOP)
        live, ready = service.client.get("/health/live"), service.client.get("/health/ready")
        os.kill(first, signal.SIGKILL)

        assert (live.status, ready.status) == (200, 503)
        wait_for(lambda: ended(first))
        service.wait_until_ready()
        assert service.database_process() != first
        assert service.read(was_read["secret_key"]).status == 404
        assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}
        assert "starting it again" in service.logged()


def test_second_service_on_one_instance(tmp_path: Path) -> None:
    """A second service, or a command, on the same instance folder ends with one clear line, and the first goes on."""
    two_workers = (*HYPERCORN[:-1], "--workers", "2", HYPERCORN[-1])
    with running(tmp_path, {}) as service:
        seconds = [
            subprocess.Popen(
                [part.format(port=free_port()) for part in command],
                env=service.environment,
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in (SERVE, HYPERCORN_ALONE, QUART_RUN, two_workers)
        ]
        stats = service.command("stats")
        texts = [second.communicate(timeout=60)[1] for second in seconds]

        lines = [line for text in (*texts, stats.stderr) for line in text.splitlines()]
        assert {line.split(" in ")[0] for line in lines} == {"quart_ots: another process uses the embedded database"}
        assert all("QUART_OTS_MONGODB_URL" in line for line in lines)
        assert [len(text.splitlines()) for text in (stats.stderr, *texts[:-1])] == [1, 1, 1, 1]
        # Two workers have a line each, if one is not ended before; and Hypercorn hides their status.
        assert [stats.returncode, *(second.returncode for second in seconds[:-1])] == [1, 1, 1, 1]
        assert service.read(service.generate()["secret_key"]).status == 200

        service.stop()
        assert json.loads(service.command("stats", "--json").stdout)["read"] == 1


def test_two_workers_without_a_url(tmp_path: Path) -> None:
    """Of two Hypercorn workers one alone can have the embedded database: the other says so, and both end."""
    command = [part.format(port=free_port()) for part in (*HYPERCORN[:-1], "--workers", "2", HYPERCORN[-1])]
    environment = environment_of({"INSTANCE_PATH": str(tmp_path)})

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    assert "quart_ots: another process uses the embedded database in " in done.stderr
    assert "Traceback" not in done.stderr


def test_reload_keeps_one_database(tmp_path: Path) -> None:
    """`quart run` with reload starts anew when code changes, and ends the database of the code before."""
    (tmp_path / "changing.py").write_text("from quart_ots import create_app\n")
    command = [part.replace("quart_ots", "changing") for part in (*QUART_RUN, "--reload")]
    with running(tmp_path, {}, command) as service:
        created = service.generate()
        first = service.database_process()
        time.sleep(1.5)  # the reloader compares times of change, once a second

        (tmp_path / "changing.py").write_text("from quart_ots import create_app as create_app\n")

        wait_for(lambda: ended(first))
        service.wait_until_ready()
        assert service.read(created["secret_key"]).status == 200
