"""The embedded database: that it ends with its service, starts again by itself, and is nobody else's."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest
from pymongo.errors import OperationFailure

from quart_ots import embedded
from tests.faults.stage import draw_master_key
from tests.service import HYPERCORN, ROOT, running, wait_for

pytestmark = pytest.mark.own_database


def ended(pid: int) -> bool:
    """Say whether a process is no more, or nothing but its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between the opening and the reading
        return True


def test_data_and_key_outlive_restarts_and_crashes(tmp_path: Path) -> None:
    """Unread secrets are there and read ones stay read after an orderly stop and after kill -9."""
    with running(tmp_path, {}, covered=False) as service:
        for end in (service.stop, service.kill):
            waiting, was_read = service.generate("waits"), service.generate()
            service.read(was_read["secret_key"])
            database = service.database_process()

            end()

            wait_for(lambda: ended(database), 5)  # noqa: B023
            service.start()
            assert service.read(was_read["secret_key"]).status_code == 404
            assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}


def test_database_that_dies_is_started_again(tmp_path: Path) -> None:
    """The service outlives its database, answers 503 meanwhile, and has all data back."""
    with running(tmp_path, {}) as service:
        waiting, was_read = service.generate("waits"), service.generate()
        service.read(was_read["secret_key"])
        first = service.database_process()

        os.kill(first, signal.SIGKILL)

        wait_for(lambda: ended(first))
        service.wait_until_ready()
        assert service.database_process() != first
        assert service.read(was_read["secret_key"]).status_code == 404
        assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}
        assert "starting it again" in service.log.read_text()


def test_database_that_is_stuck_is_started_again(tmp_path: Path) -> None:
    """A database that stopped answering is ended and started again."""
    with running(tmp_path, {}) as service:
        waiting = service.generate("waits")
        first = service.database_process()

        os.kill(first, signal.SIGSTOP)

        wait_for(lambda: ended(first), 90)
        service.wait_until_ready()
        assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}


QUART_RUN = (sys.executable, "-m", "quart", "--app", "quart_ots", "run", "--port", "{port}")


@pytest.mark.parametrize("command", [HYPERCORN, QUART_RUN], ids=["hypercorn", "quart run"])
def test_second_service_on_one_instance(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A second service on the same instance folder ends with one clear line, and the first goes on."""
    with running(tmp_path, {}, covered=False) as service:
        done = subprocess.run(
            [part.format(port=0) for part in command],
            env=service.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert done.returncode == 1
        assert done.stderr.startswith("quart_ots: another process uses the embedded database in ")
        assert "QUART_OTS_MONGODB_URL" in done.stderr
        assert done.stderr.count("\n") == 1
        assert service.read(service.generate()["secret_key"]).status_code == 200


def test_several_workers_without_url(tmp_path: Path) -> None:
    """Several Hypercorn workers can't share the embedded database: they end with the same line."""
    command = ["2" if part == "0" else part.format(port=0) for part in HYPERCORN]
    environment = {**os.environ, "QUART_OTS_INSTANCE_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert "quart_ots: another process uses the embedded database in " in done.stderr
    assert "Traceback" not in done.stderr


def test_reload_keeps_one_database(tmp_path: Path) -> None:
    """`quart run` with reload starts anew when code changes, and ends the database of the code before."""
    (tmp_path / "changing.py").write_text("from quart_ots import create_app\n")
    command = (sys.executable, "-m", "quart", "--app", "changing", "run", "--reload", "--port", "{port}")
    with running(tmp_path, {}, *command, covered=False) as service:
        created = service.generate()
        first = service.database_process()
        time.sleep(1.5)  # the reloader compares times of change, once a second

        (tmp_path / "changing.py").write_text("from quart_ots import create_app as create_app\n")

        wait_for(lambda: ended(first))
        service.wait_until_ready()
        assert service.read(created["secret_key"]).status_code == 200


def test_files_are_private_and_the_server_asks_who_comes(tmp_path: Path) -> None:
    """No other user may read the data, and no other process may use the server without the password."""
    with running(tmp_path, {}) as service:
        service.generate()
        instance = tmp_path / "instance"
        command = Path(f"/proc/{service.database_process()}/cmdline").read_text().split("\0")
        port = int(command[command.index("--port") + 1])
        stranger: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient("127.0.0.1", port, directConnection=True)
        with stranger, pytest.raises(OperationFailure):
            stranger.quart_ots.secrets.find_one()

        loose = [path for path in (instance, *instance.rglob("*")) if path.stat().st_mode & 0o077]
        assert loose == []
        assert "--sync-on-commit" in command
        assert "--auth" in command


def test_server_is_not_told_the_settings(tmp_path: Path) -> None:
    """The database's process has none of the service's settings, and so no master key, in its environment."""
    with running(tmp_path, {"MASTER_KEYS": draw_master_key()}) as service:
        names = Path(f"/proc/{service.database_process()}/environ").read_text().split("\0")

    assert any(name.startswith("PATH=") for name in names)
    assert [name for name in names if name.startswith("QUART_OTS_")] == []


async def test_server_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    """An orderly stop ends the server by SIGTERM: SIGKILL is for a server that is stuck."""
    server = embedded.EmbeddedDatabase(tmp_path, logging.getLogger())
    await server.start()

    await server.stop()

    assert server._process is not None
    assert server._process.returncode == 0


def test_lost_password_file_is_mended(tmp_path: Path) -> None:
    """Without the password's file the next start sets another, and the data is still there."""
    with running(tmp_path, {}, covered=False) as service:
        created = service.generate()
        service.stop()
        (tmp_path / "instance" / "database.password").unlink()

        service.start()

        assert service.read(created["secret_key"]).status_code == 200


def test_missing_database_package(tmp_path: Path) -> None:
    """Without SecantusDB and without a URL the start ends with a line that names both ways out."""
    hypercorn = (sys.executable, *HYPERCORN[1:])
    code = (
        "import shutil, sys; shutil.which = lambda *a, **k: None; from hypercorn.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, *(part.format(port=0) for part in hypercorn[3:])]
    environment = {**os.environ, "QUART_OTS_INSTANCE_PATH": str(tmp_path / "i"), "PYTHONPATH": str(ROOT)}

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "QUART_OTS_MONGODB_URL is not set" in done.stderr
    assert "quart_ots[embedded]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_child_whose_parent_is_gone_does_not_start() -> None:
    """A server whose service died while it was being started does not start at all."""
    done = subprocess.run([sys.executable, embedded.__file__, "1", "/bin/true"], capture_output=True, text=True)

    assert done.returncode == 1
    assert "the service has ended" in done.stderr


def test_health_while_the_database_is_gone(tmp_path: Path) -> None:
    """Between the database's end and its new start, requests are told 503 and /health/live stays well."""
    with running(tmp_path, {}, covered=False) as service:
        database = service.database_process()
        os.kill(database, signal.SIGSTOP)
        try:
            live = httpx.get(f"{service.url}/health/live", timeout=5)
            ready = httpx.get(f"{service.url}/health/ready", timeout=30)
        finally:
            os.kill(database, signal.SIGCONT)

        assert (live.status_code, ready.status_code) == (200, 503)
