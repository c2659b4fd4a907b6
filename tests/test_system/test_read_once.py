"""A secret is read once, or burned, or locked: whoever comes at the same time, over however many processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mongod import ReplicaSet
from tests.service import Service, running
from tests.test_system.conftest import Database

ROUNDS = 3
READERS = 100


@pytest.fixture(scope="module")
def pair(
    service: Service, mongod: Database, master_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Service]]:
    """Two service processes with one database and one key ring."""
    settings = {"MONGODB_URL": mongod.url, "MASTER_KEYS": master_key}
    with running(tmp_path_factory.mktemp("second"), settings) as second:
        yield [service, second]


def crowd(services: list[Service]) -> None:
    """Let a hundred readers come at once, and see that one of them gets the secret."""
    for number in range(ROUNDS):
        secret = f"the secret of round {number}"
        created = services[0].generate(secret)

        asked = [services[reader % len(services)].start_read(created["secret_key"]) for reader in range(READERS)]
        answers = [answer.result() for answer in asked]

        statuses = Counter(answer.status for answer in answers)
        assert statuses[200] == 1
        # Beyond the line before the hashing threads it is 503.
        assert set(statuses) <= {200, 404, 503}
        assert [answer.json() for answer in answers if answer.status == 200] == [{"secret": secret}]
        assert services[-1].receipt(created["receipt_key"])["state"] == "read"


@pytest.mark.parametrize("processes", [1, 2])
def test_hundred_readers_one_secret(pair: list[Service], processes: int) -> None:
    """Of 100 readers at once, over one process or two, exactly one gets the secret."""
    crowd(pair[:processes])


@pytest.mark.own_database
def test_hundred_readers_on_a_replica_set(
    replica_set: ReplicaSet, master_key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of 100 readers at once, over two processes on a replica set, exactly one gets the secret."""
    settings = {"MONGODB_URL": replica_set.url, "MASTER_KEYS": master_key}
    with (
        running(tmp_path_factory.mktemp("first"), settings) as first,
        running(tmp_path_factory.mktemp("second"), settings) as second,
    ):
        crowd([first, second])


def test_parallel_guesses_count_each(pair: list[Service]) -> None:
    """Of 60 wrong guesses at once, over two processes, ten are judged; the rest find the secret locked."""
    created = pair[0].generate()

    guesses = [pair[number % 2].start_read(created["secret_key"], "a wrong guess") for number in range(60)]

    assert Counter(guess.result().status for guess in guesses) == {403: 10, 404: 50}
    assert pair[1].receipt(created["receipt_key"])["state"] == "locked"
    assert pair[0].read(created["secret_key"]).status == 404


def test_reader_against_burner(pair: list[Service]) -> None:
    """When a reader and a burner race, one of them wins and the receipt agrees with it."""
    for _ in range(20):
        created = pair[0].generate()

        reading = pair[0].start_read(created["secret_key"])
        burning = pair[1].client.submit("DELETE", f"/receipts/{created['receipt_key']}")
        outcome = (reading.result().status, burning.result().status)

        state = pair[0].receipt(created["receipt_key"])["state"]
        assert (*outcome, state) in ((200, 409, "read"), (404, 200, "burned"))


@pytest.mark.parametrize("phrase", ["correct horse battery staple", "a wrong guess"], ids=["right", "wrong"])
def test_burner_against_the_last_attempt(pair: list[Service], phrase: str) -> None:
    """A burn is final: whatever the last attempt does meanwhile, what the burner was told stays true.

    The last attempt, once taken, has the secret locked for a burner who comes before its claim: then that attempt gets
    nothing, even with the right passphrase.
    """
    for _ in range(10):
        created = pair[0].generate()
        wrong = [pair[number % 2].start_read(created["secret_key"], "a wrong guess") for number in range(9)]
        assert {guess.result().status for guess in wrong} == {403}

        reading = pair[0].start_read(created["secret_key"], phrase)
        burning = pair[1].client.submit("DELETE", f"/receipts/{created['receipt_key']}")
        read, burned = reading.result(), burning.result()

        told = burned.json()["state"]
        receipt = pair[0].receipt(created["receipt_key"])
        assert (burned.status, told) in ((200, "burned"), (409, "read"), (409, "locked"))
        assert receipt["state"] == told
        assert (read.status == 200) == (told == "read")
        assert pair[0].read(created["secret_key"]).status == 404
        assert pair[0].receipt(created["receipt_key"]) == receipt


def test_readers_of_many_secrets(pair: list[Service]) -> None:
    """Readers in parallel each get their own secret, and no other's."""
    creations = [pair[number % 2].start_generate(f"the secret of reader {number}") for number in range(50)]
    created = [pair[0].note(creation.result()) for creation in creations]

    readings = [pair[number % 2].start_read(one["secret_key"]) for number, one in enumerate(created)]

    texts = [reading.result().json() for reading in readings]
    assert texts == [{"secret": f"the secret of reader {number}"} for number in range(50)]
