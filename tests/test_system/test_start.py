"""A start that fails ends with one line and status 1; one whose database is late waits for it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.client import request
from tests.mongod import Client, Mongod, disarm, failpoint, free_port
from tests.service import HYPERCORN_ALONE, QUART_RUN, SERVE, environment_of, running
from tests.test_system.conftest import Database

URL = "mongodb://127.0.0.1:1/nowhere"
SERVERS = pytest.mark.parametrize(
    "command", [SERVE, HYPERCORN_ALONE, QUART_RUN], ids=["serve", "hypercorn", "quart run"]
)


def attempt(folder: Path, command: Sequence[str], **settings: str) -> str:
    """Start a service that can't start, see that it ends in order, and return what it says."""
    words = [part.format(port=free_port()) for part in command]
    environment = environment_of({"INSTANCE_PATH": str(folder / "instance"), **settings})
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def refusal(folder: Path, command: Sequence[str], **settings: str) -> str:
    """Start a service that can't start and has nothing else to say, and return its one line."""
    said = attempt(folder, command, **{"MONGODB_URL": URL, **settings})
    assert said.count("\n") == 1, said
    return said.removesuffix("\n")


@SERVERS
def test_wrong_setting(tmp_path: Path, command: Sequence[str]) -> None:
    """A setting that is wrong is named in one line, under each server; nothing is made in the folder."""
    line = refusal(tmp_path, command, BCRYPT_COST="99")

    assert line == "quart_ots: QUART_OTS_BCRYPT_COST must be a whole number from 4 to 16"
    assert list(tmp_path.iterdir()) == []


def test_key_file_that_is_not_there(tmp_path: Path) -> None:
    """A key ring that can't be read is named in one line."""
    line = refusal(tmp_path, SERVE, MASTER_KEYS_FILE="missing.key")

    assert line == "quart_ots: QUART_OTS_MASTER_KEYS_FILE can't be read: FileNotFoundError"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """An instance folder that can't be made is named in one line."""
    (tmp_path / "file").touch()

    line = refusal(tmp_path, SERVE, INSTANCE_PATH="file/instance")

    assert line.startswith("quart_ots: ")
    assert "Not a directory" in line or "NotADirectoryError" in line


@pytest.mark.own_database
def test_no_embedded_database(tmp_path: Path) -> None:
    """Without a URL and without a mongod the line names what to do."""
    said = attempt(tmp_path, SERVE, MONGOD=str(tmp_path / "mongod"))

    assert said.startswith("quart_ots: QUART_OTS_MONGODB_URL is not set, and no embedded database starts: ")
    assert "install MongoDB" in said
    assert said.count("\n") == 1


@SERVERS
def test_taken_metrics_port(mongod: Database, tmp_path: Path, command: Sequence[str]) -> None:
    """What fails only while the service starts to serve is one line too, and no traceback, under each server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        said = attempt(tmp_path, command, MONGODB_URL=mongod.url, METRICS_BIND=bind)

    assert "quart_ots: QUART_OTS_METRICS_BIND: Address already in use" in said


def test_bind_of_another_machine(tmp_path: Path) -> None:
    """An address that can't be listened on is named in one line."""
    line = refusal(tmp_path, [*SERVE[:-1], "192.0.2.1:8080"])

    assert line == "quart_ots: --bind 192.0.2.1:8080: Cannot assign requested address"


def test_taken_port(tmp_path: Path) -> None:
    """A port that is taken is named in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        line = refusal(tmp_path, [*SERVE, "--bind", f"127.0.0.1:{port}"])

    assert line == f"quart_ots: --bind 127.0.0.1:{port}: Address already in use"


def test_several_binds_and_both_families(mongod: Database, tmp_path: Path) -> None:
    """--bind may be given several times; an empty host is every address of both IP families."""
    more = free_port()
    with running(tmp_path, {"MONGODB_URL": mongod.url}, [*SERVE, "--bind", f":{more}"]) as service:
        hosts = [f"127.0.0.1:{service.port}", f"127.0.0.1:{more}", f"localhost:{more}"]
        if has_ipv6():
            hosts.append(f"[::1]:{more}")

        statuses = [request("GET", f"http://{host}/health/live").status for host in hosts]

    assert set(statuses) == {200}


def has_ipv6() -> bool:
    """Return whether the loopback has an IPv6 address; containers often have none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("command", "processes"),
    [(SERVE, 1), (SERVE, 16), (HYPERCORN_ALONE, 8)],
    ids=["none to hash", "too few for the driver", "hypercorn"],
)
def test_limit_of_processes(mongod: Database, tmp_path: Path, command: Sequence[str], processes: int) -> None:
    """A system that refuses threads ends the start with a line: no request finds later that there is none to be had."""
    limit = ["prlimit", f"--nproc={processes}", *command]
    if os.getuid() == 0:
        # Who is root has no limit. The user has no other process; the files here stay readable to it.
        user = ["setpriv", "--reuid=47123", "--regid=47123", "--clear-groups"]
        limit = [*user, "--inh-caps=+dac_override", "--ambient-caps=+dac_override", *limit]

    line = refusal(tmp_path, limit, MONGODB_URL=mongod.url)

    assert line.startswith("quart_ots: the system refuses threads: raise the limit of processes")


@pytest.mark.own_database
def test_service_starts_before_its_database(tmp_path: Path) -> None:
    """A service whose database is late starts, answers 503, and serves once it is there."""
    late = Mongod(tmp_path / "mongod", start=False)
    with running(tmp_path, {"MONGODB_URL": late.url}, wait=False) as service:
        assert service.wait_until_up() == 503
        assert service.client.get("/health/live").status == 200

        late.start()
        with late:
            service.wait_until_ready()

            assert service.read(service.generate()["secret_key"]).status == 200
            service.stop()


@pytest.mark.own_database
def test_not_ready_before_its_indexes(own_mongod: Mongod, tmp_path: Path) -> None:
    """A service whose indexes can't be made is not ready; once they are, the first secret is taken."""
    with Client(own_mongod.url) as admin:
        failpoint(admin, ["createIndexes"], {"errorCode": 1})
        with running(tmp_path, {"MONGODB_URL": own_mongod.url}, wait=False) as service:
            assert service.wait_until_up() == 503

            disarm(admin)

            service.wait_until_ready()
            assert service.read(service.generate()["secret_key"]).status == 200
            assert "the database is not ready: OperationFailure 1" in service.logged()


def test_first_start_makes_a_key(mongod: Database, tmp_path: Path) -> None:
    """The first start makes an instance folder and a master key that none but their owner may read."""
    with running(tmp_path, {"MONGODB_URL": mongod.url}, covered=True) as service:
        service.generate()
        instance = tmp_path / "instance"
        key = (instance / "master.key").read_text()

        modes = {path.name: path.stat().st_mode & 0o777 for path in (instance, *instance.iterdir())}

    assert modes == {"instance": 0o700, "master.key": 0o600}
    assert re.fullmatch("[A-Za-z0-9+/]{43}=\n", key)
    assert key.strip() not in service.logged()


def test_hashing_threads_are_there_from_the_start(mongod: Database, tmp_path: Path) -> None:
    """Before the first request there is a hashing thread for each that is set, and those give way to all others."""
    with running(tmp_path, {"MONGODB_URL": mongod.url, "KDF_THREADS": "3"}) as service:
        stats = [path.read_text() for path in Path(f"/proc/{service.process.pid}/task").glob("*/stat")]
        own = os.getpriority(os.PRIO_PROCESS, service.process.pid)

        niceness = [int(stat.rpartition(")")[2].split()[16]) for stat in stats]

        assert niceness.count(own + 10) == 3
        assert set(niceness) == {own, own + 10}
        assert service.figure("quart_ots_kdf_threads") == 3
