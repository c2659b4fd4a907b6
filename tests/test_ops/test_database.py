"""The database at the start: its URL, what is demanded of it, and what the log says of it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from motor import motor_asyncio
from pydantic import SecretStr
from pymongo import ReadPreference, WriteConcern
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from quart_ots import create_app
from quart_ots.api import routes
from quart_ots.ops import database
from quart_ots.ops.database import connect, describe_skew
from quart_ots.settings import Settings, StartError
from tests.conftest import PHRASE, SECRET, MemoryAdmin, MemoryClient, post


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://u:hunter2@h/",
        " mongodb://u:hunter2@h/",
        "mongodb://u:hunter2@h:x/",
        "mongodb://",
        "mongodb://u:hunter2@h/?tls=true&tlsCAFile=/hunter2",
        "mongodb://u:hunter2@h/?loadBalanced=true&replicaSet=x",
        "mongodb://u:hunter2@h/?fsync=true",
        "mongodb://u:hun/ter2@h/",
    ],
)
async def test_bad_url(settings: Settings, url: str) -> None:
    """A URL that is none stops the start with a line, without the password that may be in it."""
    with pytest.raises(StartError) as caught:
        create_app(settings.model_copy(update={"mongodb_url": SecretStr(url)}))

    line = str(caught.value)
    assert line.startswith("quart_ots: QUART_OTS_MONGODB_URL ")
    assert "\n" not in line
    assert "hunter2" not in line
    assert "ter2" not in line


async def test_url_cannot_weaken_durability() -> None:
    """Writes are majority and journaled and reads go to the primary, whatever the URL says."""
    client = connect(
        "mongodb://h/?w=0&journal=false&readPreference=secondary&readConcernLevel=available&retryWrites=false"
        "&serverSelectionTimeoutMS=60000&socketTimeoutMS=0"
    )

    assert client.write_concern == WriteConcern("majority", j=True)
    assert client.read_preference == ReadPreference.PRIMARY
    assert client.read_concern.level in ("local", "majority")
    options = client.delegate.options
    assert options.retry_writes
    assert options.server_selection_timeout == 2
    assert options.pool_options.socket_timeout == 5
    assert options.codec_options.tz_aware
    client.close()


@pytest.fixture
async def lines(
    settings: Settings,
    memory: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> AsyncIterator[list[str]]:
    """What an app logs at its start of a database that answers as the test's parameter has it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(MemoryAdmin, "answers", {**MemoryAdmin.answers, **request.param})
    async with create_app(settings).test_app():
        yield [f"{record.levelname} {record.message}" for record in caplog.records]


@pytest.mark.parametrize("lines", [{"hello": {"setName": "rs0"}}], indirect=True)
async def test_boot_lines(lines: list[str]) -> None:
    """A database that is well gets a line each for version, clock and indexes."""
    assert "INFO database: version 8.0.4, replica set rs0" in lines
    assert any(re.fullmatch(r"INFO clock: the database's is 0\.\d s .* this machine's", line) for line in lines)
    assert "INFO indexes: in place" in lines


@pytest.mark.parametrize(
    ("lines", "kind"),
    [({}, "standalone"), ({"hello": {"msg": "isdbgrid"}}, "sharded")],
    indirect=["lines"],
)
async def test_kinds(lines: list[str], kind: str) -> None:
    """The log says what kind of database it is."""
    assert f"INFO database: version 8.0.4, {kind}" in lines


@pytest.mark.parametrize("lines", [{"buildInfo": {"version": "5.0.31"}}], indirect=True)
async def test_old_database(lines: list[str]) -> None:
    """A database that is too old is told in a line, and not used."""
    assert "WARNING the database is not ready: it is version 5.0.31, and 6.0 or newer is needed" in lines
    assert "INFO indexes: in place" not in lines


@pytest.mark.parametrize("lines", [{"hello": {"localTime": datetime(2001, 1, 1)}}], indirect=True)
async def test_clock_far_away(lines: list[str]) -> None:
    """A clock that is years away is a warning."""
    assert any(line.startswith("WARNING clock: the database's is ") and "behind" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "level", "told"),
    [
        (5, logging.INFO, "5.0 s ahead of"),
        (5.1, logging.WARNING, "5.1 s ahead of"),
        (-5.1, logging.WARNING, "5.1 s behind"),
        (0, logging.INFO, "0.0 s behind"),
    ],
)
def test_clock_skew(seconds: float, level: int, told: str) -> None:
    """A clock may be 5 s away, seen from the middle of the time that asking took."""
    sent = datetime(2027, 1, 1, tzinfo=UTC)
    received = sent + timedelta(seconds=2)

    skew, line = describe_skew(sent + timedelta(seconds=1 + seconds), sent, received)

    assert (skew, told in line) == (level, True)


async def until_logged(caplog: pytest.LogCaptureFixture, line: str) -> None:
    """Return when the log has a line, which the app writes in its own time."""
    while not any(re.fullmatch(line, record.getMessage()) for record in caplog.records):
        await asyncio.sleep(0.001)


async def test_keys_that_open_everything(settings: Settings, memory: None, caplog: pytest.LogCaptureFixture) -> None:
    """The start looks whether the ring has the keys of all that waits, and names it by its ids."""
    caplog.set_level(logging.INFO)
    async with create_app(settings).test_app():
        await until_logged(caplog, "master keys: [0-9a-f]{16} open every envelope")


async def test_key_that_is_missing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that the ring lacks is a warning, with its id and how many secrets cannot be read without it."""
    shared = MemoryClient(tz_aware=True)
    monkeypatch.setattr(motor_asyncio, "AsyncIOMotorClient", lambda *_, **__: shared)
    app = create_app(settings)
    async with app.test_app():
        await post(app.test_client(), "/generate", {"secret": SECRET, "passphrase": PHRASE})
        old_id = app.extensions[routes.EXTENSION].ring.ids[0]
    (settings.instance_path / "master.key").unlink()

    async with create_app(settings).test_app():
        await until_logged(caplog, f"1 secrets wait under master key {old_id}, which the ring lacks")


async def test_database_that_comes_late(
    settings: Settings, memory: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that is away at the start is tried again until it is there; the log has no message of the driver's."""
    monkeypatch.setattr(database, "RETRY_INTERVAL", 0.001)
    away = [AutoReconnect("hunter2")] * 3
    command = MemoryAdmin.command

    async def fail_first(self: MemoryAdmin, name: str) -> dict[str, Any]:
        if away:
            raise away.pop()
        return await command(self, name)

    monkeypatch.setattr(MemoryAdmin, "command", fail_first)
    app = create_app(settings)
    async with app.test_app():
        client = app.test_client()
        first = await client.get("/health/ready")

        while (ready := await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.001)

    assert (await first.get_json(force=True))["type"] == "urn:quart-ots:problem:database-unavailable"
    assert ready.status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == ["the database is not ready: AutoReconnect"] * 3
    assert "hunter2" not in caplog.text


async def test_end_before_the_database_came(
    settings: Settings, memory: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A service whose database never came ends in order, and leaves nothing running."""

    async def fail(*_: Any) -> dict[str, Any]:
        raise ServerSelectionTimeoutError("hunter2")

    monkeypatch.setattr(MemoryAdmin, "command", fail)
    before = asyncio.all_tasks()

    async with create_app(settings).test_app():
        pass

    assert asyncio.all_tasks() == before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
