"""The operator's commands, in process: what they print, what they leave alone, and what they never show."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from motor import motor_asyncio
from pymongo.errors import ServerSelectionTimeoutError

from quart_ots import __version__, cli, create_app
from quart_ots.settings import Settings, variable
from quart_ots.vault.crypto import key_id
from tests.conftest import PHRASE, SECRET, MemoryAdmin, MemoryClient, post

KEYS = [bytes([number]) * 32 for number in (1, 2)]
TEXTS = [base64.b64encode(key).decode() for key in KEYS]
IDS = [key_id(key).hex() for key in KEYS]
URL = "mongodb://somebody:hunter2@127.0.0.1:1,127.0.0.1:2/name?authSource=hunter2"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with nothing in it; at the end the log is as it was."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    logging.disable(logging.NOTSET)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> None:
    """One database in memory for all commands of the test."""
    shared = MemoryClient(tz_aware=True)
    monkeypatch.setattr(motor_asyncio, "AsyncIOMotorClient", lambda *_, **__: shared)
    monkeypatch.setenv("QUART_OTS_MONGODB_URL", "mongodb://unit.test/")


def run(*words: str, status: int = 0, **more: Any) -> Result:
    """Run a command."""
    result = CliRunner().invoke(cli.main, words, **more)
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def answer(*words: str, status: int = 0) -> Any:
    """Run a command that answers in JSON, and return that."""
    return json.loads(run(*words, "--json", status=status).stdout)


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and group."""
    yield before
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield (*before, name)


@pytest.mark.parametrize("words", [*commands(cli.main)], ids=" ".join)
def test_help_touches_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path, words: tuple[str, ...]) -> None:
    """Help is there even where the settings are wrong, and leaves the disk as it is."""
    monkeypatch.setenv("QUART_OTS_TYPO", "1")

    text = run(*words, "--help").stdout

    assert text.startswith("Usage: ")
    assert list(folder.iterdir()) == []


def test_version() -> None:
    """The version is that of the package."""
    assert run("--version").stdout.strip().endswith(__version__)


def test_new_key(folder: Path) -> None:
    """A new key is on stdout alone, to be appended to a file; what to do with it is on stderr. Nothing is written."""
    result = run("keys", "new")

    key = base64.b64decode(result.stdout, validate=False)
    assert result.stdout == base64.b64encode(key).decode() + "\n"
    assert len(key) == 32
    assert result.stderr.startswith(f"Its id is {key_id(key).hex()}. Put it first in the key ring")
    assert run("keys", "new").stdout != result.stdout
    assert list(folder.iterdir()) == []


def test_new_key_as_json() -> None:
    """As JSON, a key comes with its id."""
    made = answer("keys", "new")

    assert made["id"] == key_id(base64.b64decode(made["key"])).hex()


def test_config_touches_nothing(folder: Path) -> None:
    """Showing the settings makes neither the instance folder nor a key, and says that there is none yet."""
    text = run("config").stdout

    assert text.endswith("\nkey ring: none yet: the first start makes one\n")
    assert list(folder.iterdir()) == []


def test_config_shows_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting is shown with its value and where that came from."""
    (folder / "instance").mkdir()
    (folder / "instance" / "config.toml").write_text("kdf_queue = 7\nlog_addresses = true\n")
    monkeypatch.setenv("QUART_OTS_BCRYPT_COST", "4")

    rows = {row["setting"]: (row["value"], row["source"]) for row in answer("config")}

    assert set(rows) == {variable(name) for name in Settings.model_fields}
    assert rows["QUART_OTS_KDF_QUEUE"] == (7, str(folder / "instance" / "config.toml"))
    assert rows["QUART_OTS_LOG_ADDRESSES"] == (True, str(folder / "instance" / "config.toml"))
    assert rows["QUART_OTS_BCRYPT_COST"] == (4, "QUART_OTS_BCRYPT_COST")
    assert rows["QUART_OTS_DRAIN"] == (0, "default")
    assert rows["QUART_OTS_METRICS_BIND"] == (None, "default")
    assert rows["QUART_OTS_INSTANCE_PATH"] == (str(folder / "instance"), "default")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "mongodb://***@127.0.0.1:1,127.0.0.1:2/name"),
        ("mongodb+srv://somebody:hunter2@h/?tlsCertificateKeyFilePassword=hunter2", "mongodb+srv://***@h/"),
        ("mongodb://h:27017/name", "mongodb://h:27017/name"),
        # Not URLs that the service starts with: a mistake is no reason to show a password.
        ("mongodb://somebody:hun/ter2@h/name", "mongodb://***@h/name"),
        ("mongodb://somebody:hun?ter2@h/name", "mongodb://***@h/name"),
        ("mongodb://somebody:hun@ter2@h/name", "mongodb://***@h/name"),
        ("mongodb://somebody:hun#ter2@h/name", "mongodb://***@h/name"),
        ("somebody:hunter2@h/name", "***@h/name"),
    ],
)
def test_config_shows_no_password(monkeypatch: pytest.MonkeyPatch, url: str, shown: str) -> None:
    """The database's URL is shown without what is secret in it."""
    monkeypatch.setenv("QUART_OTS_MONGODB_URL", url)

    rows = {row["setting"]: row["value"] for row in answer("config")}
    text = run("config").output

    assert rows["QUART_OTS_MONGODB_URL"] == shown
    for hidden in ("hunter2", "ter2", "somebody"):
        assert hidden not in text


def test_config_shows_keys_as_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are shown as ids, whether they are in a variable or in a file, the first one first."""
    monkeypatch.setenv("QUART_OTS_MASTER_KEYS", ",".join(TEXTS))
    rows = {row["setting"]: row["value"] for row in answer("config")}
    text = run("config").stdout
    monkeypatch.delenv("QUART_OTS_MASTER_KEYS")
    (folder / "keys").write_text("\n".join(TEXTS))
    monkeypatch.setenv("QUART_OTS_MASTER_KEYS_FILE", "keys")
    text_of_file = run("config").stdout

    assert rows["QUART_OTS_MASTER_KEYS"] == ", ".join(IDS)
    for shown in (text, text_of_file):
        assert shown.endswith(f"\nkey ring: {', '.join(IDS)}, the first seals\n")
        assert not any(key in shown for key in TEXTS)


def test_config_of_bad_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would stop the start stops the command, with the same line."""
    monkeypatch.setenv("QUART_OTS_DRAIN", "-1")

    assert run("config", status=1).output == "quart_ots: QUART_OTS_DRAIN must be a whole number from 0 to 300\n"


def test_no_keys_and_no_secrets(folder: Path, database: None) -> None:
    """Before the first start there is neither a key nor a secret: the commands say so and make none."""
    assert run("keys", "list").stdout == run("keys", "check").stdout == ""
    assert answer("keys", "list") == answer("keys", "check") == []
    assert answer("stats") == {"pending": 0, "read": 0, "burned": 0, "locked": 0, "expired": 0}
    assert answer("purge", "--yes") == {"burned": 0}
    assert list(folder.iterdir()) == []


def test_keys_under_which_nothing_waits(database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first key of a ring seals; another one under which nothing waits may be dropped."""
    monkeypatch.setenv("QUART_OTS_MASTER_KEYS", ",".join(TEXTS))

    assert [(row["id"], row["verdict"], row["waiting"]) for row in answer("keys", "check")] == [
        (IDS[0], "seals", 0),
        (IDS[1], "drop", 0),
    ]
    lines = run("keys", "list").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["id", "first", "in_ring", "waiting"],
        [IDS[0], "yes", "yes", "0"],
        [IDS[1], "no", "yes", "0"],
    ]


@pytest.fixture
def waiting(database: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the creator got of a secret that waits under the first key."""
    monkeypatch.setenv("QUART_OTS_MASTER_KEYS", TEXTS[0])
    monkeypatch.setenv("QUART_OTS_BCRYPT_COST", "4")

    async def create() -> dict[str, Any]:
        app = create_app()
        async with app.test_app():
            answer = await post(app.test_client(), "/generate", {"secret": SECRET, "passphrase": PHRASE})
            created: dict[str, Any] = await answer.get_json()
            return created

    return asyncio.run(create())


@pytest.mark.parametrize(
    ("ring", "status", "verdicts"),
    [
        ([0], 0, [("seals", 1)]),
        ([1, 0], 0, [("seals", 0), ("keep", 1)]),
        ([1], 3, [("seals", 0), ("missing", 1)]),
    ],
    ids=["as it was", "rotated", "lost"],
)
def test_keys_under_which_something_waits(
    waiting: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    ring: list[int],
    status: int,
    verdicts: list[tuple[str, int]],
) -> None:
    """A key is to be kept until what waits under it expires; one that the ring lacks has a status of its own."""
    monkeypatch.setenv("QUART_OTS_MASTER_KEYS", ",".join(TEXTS[index] for index in ring))

    rows = answer("keys", "check", status=status)
    result = run("keys", "check", status=status)

    assert [(row["verdict"], row["waiting"]) for row in rows] == verdicts
    kept = [row["keep_until"] for row in rows if row["verdict"] == "keep"]
    assert kept == ([waiting["expires_at"]] if len(ring) > 1 else [])
    assert ("A key is missing: put it back" in result.stderr) == (status == 3)


def test_purge(waiting: dict[str, Any]) -> None:
    """What waits and was created before the time given is burned, once that is confirmed."""
    assert answer("purge", "--yes", "--created-before", "2020-01-01") == {"burned": 0}
    assert answer("stats")["pending"] == 1

    result = run("purge", input="y\n")

    assert result.stdout == "Burned 1 secrets.\n"
    assert "Burn 1 secrets that wait, created before 20" in result.stderr
    assert answer("stats") == {"pending": 0, "read": 0, "burned": 1, "locked": 0, "expired": 0}


@pytest.mark.parametrize("words", [("stats",), ("keys", "list"), ("keys", "check"), ("purge", "--yes")], ids=" ".join)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ServerSelectionTimeoutError("hunter2"), "the database failed: ServerSelectionTimeoutError"),
        ({"version": "5.0.31"}, "it is version 5.0.31, and 6.0 or newer is needed"),
    ],
    ids=["away", "old"],
)
def test_database_that_can_not_be_used(
    database: None, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], fault: Any, told: str
) -> None:
    """What cannot be counted is told in a line, without the driver's own words."""

    async def command(*_: object) -> Any:
        if isinstance(fault, Exception):
            raise fault
        return fault

    monkeypatch.setattr(MemoryAdmin, "command", command)

    assert run(*words, status=1).output == f"quart_ots: {told}\n"


def test_stats_as_a_table(database: None) -> None:
    """Counts are a table for people."""
    lines = run("stats").stdout.splitlines()

    assert [line.split() for line in lines] == [
        ["state", "secrets"],
        *[[state, "0"] for state in ("pending", "read", "burned", "locked", "expired")],
    ]


@pytest.mark.parametrize("sent", ["n\n", "", "\n"])
def test_purge_that_is_not_confirmed(database: None, sent: str) -> None:
    """Without a yes nothing is burned, and stdout stays empty."""
    result = run("purge", input=sent, status=1)

    assert result.stdout == ""
    assert "Burn 0 secrets that wait, created before 20" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("purge", "--yes", "--created-before", "yesterday"), "Invalid value for '--created-before'"),
        (("purge", "--all"), "No such option"),
        (("keys", "drop"), "No such command"),
        (("serve", "--port", "1"), "No such option"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], told: str) -> None:
    """Wrong usage has a status of its own."""
    assert told in run(*words, status=2).stderr


@pytest.mark.parametrize("text", ["2027-01-31T12:00Z", "2027-01-31T13:00+01:00", "2027-01-31T12:00", "20270131T12"])
def test_times(text: str) -> None:
    """A time is UTC unless it says otherwise."""
    assert cli.utc_time(text).isoformat() in ("2027-01-31T12:00:00+00:00", "2027-01-31T13:00:00+01:00")


@pytest.mark.parametrize(
    ("bind", "told"),
    [("nonsense", "--bind must be HOST:PORT"), ("192.0.2.1:0", "--bind 192.0.2.1:0: Cannot assign requested address")],
)
def test_serve_on_what_is_no_address(database: None, folder: Path, bind: str, told: str) -> None:
    """An address that cannot be listened on ends the start with a line, before anything is made."""
    assert run("serve", "--bind", bind, status=1).output.startswith(f"quart_ots: {told}")
    assert list(folder.iterdir()) == []
