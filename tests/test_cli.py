"""The operator's commands, run as an operator would, on a real database."""

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import census
from quart_ots.schemas import rfc3339
from tests.conftest import SECRET, Clock, post, read
from tests.service import PHRASE, Mongo, Service, running


@pytest.fixture
def alone(mongo: Mongo, tmp_path: Path) -> Iterator[Service]:
    """A service with a database that no other test writes to, and a key file."""
    url = mongo.url.replace("/quart_ots", f"/ots_{os.getpid()}_{tmp_path.name[-40:]}")
    with running(tmp_path, {"MONGODB_URL": url}, covered=False) as service:
        yield service


def answer(service: Service, *words: str, status: int = 0, **more: Any) -> Any:
    """Run a command that answers in JSON, and give that."""
    done = service.command(*words, "--json", **more)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def verdicts(service: Service, status: int = 0) -> list[tuple[str, int]]:
    """Give each key's verdict and how many secrets wait under it, in the ring's order."""
    return [(row["verdict"], row["waiting"]) for row in answer(service, "keys", "check", status=status)]


def test_rotation(alone: Service) -> None:
    """By the runbook: a new key first, old secrets open, the old key goes when nothing needs it, nothing is lost."""
    ring = alone.folder / "instance" / "master.key"
    old_key = ring.read_text()
    old = [alone.generate(f"an old secret {number}") for number in range(2)]
    assert verdicts(alone) == [("seals", 2)]

    done = alone.command("keys", "new")
    new_key, new_id = done.stdout, done.stderr.split()[3].rstrip(".")
    alone.sent |= {new_key.strip(), old_key.strip()}
    assert alone.stop() == 0
    ring.write_text(new_key + old_key)
    alone.start()

    new = alone.generate("a new secret")
    assert alone.read(old[0]["secret_key"]).json() == {"secret": "an old secret 0"}
    rows = answer(alone, "keys", "list")
    assert [(row["first"], row["in_ring"], row["waiting"]) for row in rows] == [(True, True, 1), (False, True, 1)]
    assert rows[0]["id"] == new_id
    keep = answer(alone, "keys", "check")[1]
    assert (keep["verdict"], keep["keep_until"]) == ("keep", old[1]["expires_at"])

    alone.stop()
    ring.write_text(new_key)
    assert verdicts(alone, status=3) == [("seals", 1), ("missing", 1)]
    assert "A key is missing" in alone.command("keys", "check").stderr

    ring.write_text(new_key + old_key)
    alone.start()
    assert alone.read(old[1]["secret_key"]).json() == {"secret": "an old secret 1"}
    assert verdicts(alone) == [("seals", 1), ("drop", 0)]

    alone.stop()
    ring.write_text(new_key)
    alone.start()
    assert verdicts(alone) == [("seals", 1)]
    assert alone.read(new["secret_key"]).json() == {"secret": "a new secret"}


def test_purge(alone: Service) -> None:
    """Purge burns what waits and was created before the time given, once it was confirmed, and nothing else."""
    early, was_read = alone.generate("an early secret"), alone.generate("a secret that was read")
    alone.read(was_read["secret_key"])
    border = datetime.now(UTC).isoformat()
    late = alone.generate("a late secret")

    refused = alone.command("purge", input="n\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Burn 2 secrets" in refused.stderr
    assert alone.command("purge").returncode == 1  # nobody there to ask
    assert answer(alone, "stats")["pending"] == 2

    assert answer(alone, "purge", "--yes", "--created-before", border) == {"burned": 1}
    assert alone.receipt(early["receipt_key"])["state"] == "burned"
    assert alone.read(early["secret_key"]).status_code == 404
    assert alone.receipt(late["receipt_key"])["state"] == "pending"

    done = alone.command("purge", input="y\n")
    assert (done.returncode, done.stdout) == (0, "Burned 1 secrets.\n")
    assert answer(alone, "stats") == {"pending": 0, "read": 1, "burned": 2, "locked": 0, "expired": 0}
    assert answer(alone, "keys", "list")[0]["waiting"] == 0
    assert alone.receipt(was_read["receipt_key"])["state"] == "read"


def test_config(alone: Service) -> None:
    """Config shows each setting with its source; keys as ids, no password, and no option that may hold one."""
    (alone.folder / "instance" / "config.py").write_text("KDF_QUEUE = 7\n")
    url = "mongodb://somebody:a-password@127.0.0.1:1,127.0.0.1:2/name?authSource=an-option"
    alone.environment["QUART_OTS_MONGODB_URL"] = url

    rows = {row["setting"]: (row["value"], row["source"]) for row in answer(alone, "config")}
    text = alone.command("config").stdout

    assert rows["KDF_QUEUE"] == (7, str(alone.folder / "instance" / "config.py"))
    assert rows["BCRYPT_COST"] == (4, "QUART_OTS_BCRYPT_COST")
    assert rows["RATE_LIMIT"] == (1_000_000, "QUART_OTS_RATE_LIMIT")
    assert rows["KDF_THREADS"] == (0, "default")
    assert rows["MONGODB_URL"] == ("mongodb://***@127.0.0.1:1,127.0.0.1:2/name", "QUART_OTS_MONGODB_URL")
    assert "KDF_QUEUE" in text
    assert "key ring: " in text
    for hidden in ("a-password", "an-option", (alone.folder / "instance" / "master.key").read_text().strip()):
        assert hidden not in text


def test_config_of_a_ring_in_the_environment(alone: Service) -> None:
    """A key in a variable is shown as its id."""
    made = answer(alone, "keys", "new")
    alone.environment["QUART_OTS_MASTER_KEYS"] = made["key"]

    rows = {row["setting"]: row["value"] for row in answer(alone, "config")}

    assert rows["MASTER_KEYS"] == made["id"]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("stats",), 1, "quart_ots: the database failed: ServerSelectionTimeoutError"),
        (("keys", "check"), 1, "quart_ots: the database failed"),
        (("purge", "--yes", "--created-before", "yesterday"), 2, "Invalid value for '--created-before'"),
        (("purge", "--all"), 2, "No such option"),
    ],
)
def test_command_that_fails(alone: Service, words: tuple[str, ...], status: int, told: str) -> None:
    """What can't be done is told in words on stderr, with a status of its own and no traceback."""
    alone.environment["QUART_OTS_MONGODB_URL"] = "mongodb://127.0.0.1:1/none"

    done = alone.command(*words)

    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.own_database
def test_embedded_database(tmp_path: Path) -> None:
    """With the embedded database, commands work while the service does not run, and say so while it does."""
    with running(tmp_path, {}) as service:
        service.generate("a secret")
        refused = service.command("stats")
        assert refused.returncode == 1
        assert refused.stderr.startswith("quart_ots: another process uses the embedded database")
        assert len(refused.stderr.splitlines()) == 1

        service.stop()
        assert answer(service, "stats")["pending"] == 1
        assert service.command("stats").stderr == ""


async def test_ranges_miss_nothing(app: Quart, client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting and burning in ranges of two finds each secret once, in whatever state."""
    monkeypatch.setattr(census, "RANGE", 2)
    monkeypatch.setattr(census, "BURN_RANGE", 2)
    made = []
    for ttl in (60, 60, *[3600] * 9):
        created = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE, "ttl": ttl})
        made.append(await created.get_json())
    await read(client, made[2]["secret_key"])
    await client.delete(f"/receipts/{made[3]['receipt_key']}")
    await asyncio.gather(*(read(client, made[4]["secret_key"], "wrong") for _ in range(10)))
    clock.forward(120)
    seen: list[int] = []

    counts = await census.count_by_state(clock(), seen.append)

    assert counts == {"pending": 6, "read": 1, "burned": 1, "locked": 1, "expired": 2}
    assert (sum(seen), max(seen)) == (11, 2)
    (use,) = (await census.count_by_key(clock())).values()
    assert use.live == 6
    assert rfc3339(use.until) == made[-1]["expires_at"]
    assert await census.burn_all(clock(), clock() - timedelta(hours=1)) == 0
    assert await census.burn_all(clock(), clock()) == 6
    assert (await census.count_by_state(clock()))["burned"] == 7
    assert await census.count_by_key(clock()) == {}
