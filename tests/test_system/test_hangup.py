"""A client that hangs up: nothing is claimed for it, so that nobody's reading loses the secret."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mongod import Client, Mongod, disarm, failpoint, wait_for
from tests.service import PHRASE, Service, running
from tests.test_system.conftest import Database

GONE = '"status": "-"'  # a request's log line that tells of no answer


@pytest.fixture(scope="module")
def slow(mongod: Database, master_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one thread in which a hash takes half a second: time enough to hang up."""
    settings = {"MONGODB_URL": mongod.url, "MASTER_KEYS": master_key, "BCRYPT_COST": "13", "KDF_THREADS": "1"}
    with running(tmp_path_factory.mktemp("slow"), settings) as service:
        yield service


def send(service: Service, path: str, **body: str) -> socket.socket:
    """Send a request, and return its connection without waiting for the answer."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", service.port))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def logged_since(service: Service, before: int, text: str) -> None:
    """Wait until a text is in what was logged since the log was that long."""
    wait_for(lambda: text in service.logged()[before:])


def test_hang_up_in_mid_hash_claims_nothing(slow: Service) -> None:
    """A reader with the right passphrase who hangs up while it is hashed has read nothing, and spent no attempt."""
    created = slow.generate()
    before = len(slow.logged())

    with send(slow, f"/secrets/{created['secret_key']}", passphrase=PHRASE):
        wait_for(lambda: slow.figure("quart_ots_kdf_busy") == 1)
        assert slow.receipt(created["receipt_key"])["attempts_left"] == 9
    logged_since(slow, before, GONE)
    wait_for(lambda: slow.receipt(created["receipt_key"])["attempts_left"] == 10)  # it took one, and gives it back

    assert slow.receipt(created["receipt_key"])["state"] == "pending"
    assert slow.read(created["secret_key"]).json() == {"secret": "the secret"}


def test_hang_up_in_line_costs_nothing(slow: Service, service: Service) -> None:
    """A reader who hangs up while it waits for a thread leaves the line, and no attempt was taken."""
    created = service.generate()
    slow.sent |= set(created.values())
    first, second = (slow.start_generate(f"ahead of the reader {number}") for number in range(2))
    wait_for(lambda: slow.figure("quart_ots_kdf_busy") == 1)

    with send(slow, f"/secrets/{created['secret_key']}", passphrase=PHRASE):
        wait_for(lambda: slow.figure("quart_ots_kdf_queued") == 1)
    wait_for(lambda: slow.figure("quart_ots_kdf_queued") == 0)

    for creation in (first, second):
        slow.note(creation.result())
    receipt = slow.receipt(created["receipt_key"])
    assert (receipt["state"], receipt["attempts_left"]) == ("pending", 10)
    assert slow.read(created["secret_key"]).status == 200


def test_hang_up_of_a_creator_stores_nothing(slow: Service, mongod: Database) -> None:
    """A creator who hangs up while its secret is sealed has no keys, so nothing is stored."""
    before = len(slow.logged())
    with mongod.client() as client:
        envelopes = client.get_default_database().envelopes
        kept = envelopes.count_documents({})

        with send(slow, "/generate", secret="nobody waits for this", passphrase=PHRASE):
            wait_for(lambda: slow.figure("quart_ots_kdf_busy") == 1)
        logged_since(slow, before, GONE)
        wait_for(lambda: slow.figure("quart_ots_kdf_busy") == 0)

        assert slow.read(slow.generate()["secret_key"]).status == 200  # whatever was to come has come
        assert envelopes.count_documents({}) == kept
    slow.sent.add("nobody waits for this")


@pytest.mark.own_database
def test_hang_up_while_a_claim_is_tried_again(own_mongod: Mongod, tmp_path: Path) -> None:
    """A claim that the database did not take is tried again, but not for a reader who is gone meanwhile."""
    with running(tmp_path, {"MONGODB_URL": own_mongod.url}) as service, Client(own_mongod.url) as admin:
        created = service.generate()
        # The first update takes the attempt. The next is the claim: refused as often as it comes.
        failpoint(admin, ["update"], {"errorCode": 50, "namespace": "quart_ots.secrets"}, skip=1)

        with send(service, f"/secrets/{created['secret_key']}", passphrase=PHRASE):
            logged_since(service, 0, "a claim is in doubt")
        logged_since(service, 0, GONE)
        disarm(admin)

        service.stop()  # waits for what is tried, in order to settle what is in doubt
        service.start()
        receipt = service.receipt(created["receipt_key"])
        assert (receipt["state"], receipt["attempts_left"]) == ("pending", 9)
        assert service.read(created["secret_key"]).json() == {"secret": "the secret"}


@pytest.mark.own_database
def test_claim_whose_reply_was_lost_is_settled(own_mongod: Mongod, tmp_path: Path) -> None:
    """A claim that was made, but whose reply was lost, is found again: the reader gets the secret, and no other."""
    with running(tmp_path, {"MONGODB_URL": own_mongod.url}) as service, Client(own_mongod.url) as admin:
        created = service.generate()
        # The command takes effect, and its answer is an error.
        in_doubt = {"code": 64, "errmsg": "not yet written by a majority"}
        failpoint(admin, ["update"], {"writeConcernError": in_doubt, "namespace": "quart_ots.secrets"}, skip=1)

        reading = service.start_read(created["secret_key"])
        logged_since(service, 0, "a claim is in doubt")
        disarm(admin)

        assert reading.result().json() == {"secret": "the secret"}
        assert service.receipt(created["receipt_key"])["state"] == "read"
        assert service.read(created["secret_key"]).status == 404


def test_hang_up_is_logged(service: Service) -> None:
    """A client that hangs up before its answer has a line too, with no status."""
    before = len(service.logged())

    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )

    logged_since(service, before, '"route": "/generate", "status": "-"')


def test_hang_up_leaves_no_path_in_the_log(service: Service) -> None:
    """A client that sends its request and hangs up at once leaves no key in the log."""
    created = service.generate()
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(f"GET /secrets/{created['secret_key']} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    assert service.client.get("/health/live").status == 200
    assert created["secret_key"] not in service.logged()
