"""The operator's commands, run as an operator would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.service import Service, environment_of, run_command, running
from tests.test_system.conftest import Database


@pytest.fixture
def alone(mongod: Database, tmp_path: Path) -> Iterator[Service]:
    """A service with a database that no other test writes to, and a key file."""
    database = mongod.sibling(datetime.now(UTC).strftime("%H%M%S%f"))
    with running(tmp_path, {"MONGODB_URL": database.url}) as service:
        yield service
    with database.client() as client:
        client.drop_database(client.get_default_database())


def answer(service: Service, *words: str, status: int = 0, **more: Any) -> Any:
    """Run a command that answers in JSON, and return that."""
    done = service.command(*words, "--json", **more)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def verdicts(service: Service, status: int = 0) -> list[tuple[str, int]]:
    """Return each key's verdict and how many secrets wait under it, in the ring's order."""
    return [(row["verdict"], row["waiting"]) for row in answer(service, "keys", "check", status=status)]


def test_rotation(alone: Service) -> None:
    """By the runbook: a new key first, old secrets open, the old key goes when nothing needs it, nothing is lost."""
    ring = alone.folder / "instance" / "master.key"
    old_key = ring.read_text()
    old = [alone.generate(f"an old secret {number}") for number in range(2)]

    done = alone.command("keys", "new")
    new_key, new_id = done.stdout, done.stderr.split()[3].rstrip(".")
    alone.sent |= {new_key.strip(), old_key.strip()}
    assert alone.stop() == 0
    ring.write_text(new_key + old_key)
    alone.start()

    new = alone.generate("a new secret")
    assert alone.read(old[0]["secret_key"]).json() == {"secret": "an old secret 0"}
    seals, keep = answer(alone, "keys", "check")
    assert (seals["verdict"], seals["waiting"], seals["id"]) == ("seals", 1, new_id)
    assert (keep["verdict"], keep["waiting"], keep["keep_until"]) == ("keep", 1, old[1]["expires_at"])

    ring.write_text(new_key)
    assert verdicts(alone, status=3) == [("seals", 1), ("missing", 1)]

    ring.write_text(new_key + old_key)
    assert alone.read(old[1]["secret_key"]).json() == {"secret": "an old secret 1"}
    assert verdicts(alone) == [("seals", 1), ("drop", 0)]

    alone.stop()
    ring.write_text(new_key)
    alone.start()
    assert alone.read(new["secret_key"]).json() == {"secret": "a new secret"}


def test_purge(alone: Service) -> None:
    """Purge burns what waits and was created before the time given, or all once that is confirmed, and nothing else."""
    early, was_read = alone.generate("an early secret"), alone.generate("a secret that was read")
    alone.read(was_read["secret_key"])
    border = datetime.now(UTC).isoformat()
    late = alone.generate("a late secret")

    assert answer(alone, "purge", "--yes", "--created-before", border) == {"burned": 1}
    assert alone.receipt(early["receipt_key"])["state"] == "burned"
    assert alone.read(early["secret_key"]).status == 404
    assert alone.receipt(late["receipt_key"])["state"] == "pending"

    done = alone.command("purge", input="y\n")
    assert (done.returncode, done.stdout) == (0, "Burned 1 secrets.\n")
    assert answer(alone, "stats") == {"pending": 0, "read": 1, "burned": 2, "locked": 0, "expired": 0}
    assert alone.receipt(was_read["receipt_key"])["state"] == "read"


def test_purge_under_readers(alone: Service) -> None:
    """A purge while secrets are read burns each or lets it be read, and its receipt says which."""
    created = [alone.generate(f"the secret of reader {number}") for number in range(60)]

    readings = [alone.start_read(one["secret_key"]) for one in created]
    burned = answer(alone, "purge", "--yes")["burned"]

    states = [alone.receipt(one["receipt_key"])["state"] for one in created]
    answers = [reading.result().status for reading in readings]
    assert states.count("burned") == burned
    assert set(zip(answers, states, strict=True)) <= {(200, "read"), (404, "burned")}


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("keys", "check"), 1, "quart_ots: the database failed: ServerSelectionTimeoutError"),
        (("purge", "--all"), 2, "No such option"),
    ],
    ids=["no database", "wrong usage"],
)
def test_command_that_fails(tmp_path: Path, words: tuple[str, ...], status: int, told: str) -> None:
    """What can't be done is said in words on stderr, with a status of its own and no traceback."""
    done = run_command(environment_of({"MONGODB_URL": "mongodb://127.0.0.1:1/none"}), tmp_path, *words)

    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert status != 1 or done.stderr.count("\n") == 1
