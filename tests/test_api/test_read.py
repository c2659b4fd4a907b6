"""POST /secrets/{secret_key}: a secret is read once, or locked by wrong passphrases."""

from __future__ import annotations

import pytest
from quart.typing import TestClientProtocol as Client

from quart_ots.vault.store import Envelope
from tests.conftest import PHRASE, SECRET, Clock, Created, post, read, receipt
from tests.test_api.conftest import check_problem

NOT_FOUND = "a" * 43


async def test_read_twice(client: Client, created: Created) -> None:
    """The second reader is told the same as one with a made-up key."""
    await read(client, created.secret_key)
    stranger = await read(client, NOT_FOUND)

    second = await read(client, created.secret_key)

    assert second.status_code == 404
    assert await second.get_data() == await stranger.get_data()


async def test_read_deletes_the_envelope(client: Client, created: Created) -> None:
    """What was read is not kept, sealed or not."""
    answer = await read(client, created.secret_key)

    assert await answer.get_json() == {"secret": SECRET}
    assert await Envelope.count() == 0


async def test_all_that_is_gone_looks_the_same(client: Client, clock: Clock) -> None:
    """Unknown, read, burned, locked and expired secrets, and paths that hold no key, answer the same to the byte."""

    async def create() -> Created:
        answer = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE, "ttl": 60})
        return Created(**await answer.get_json())

    was_read, burned, locked, expired = [await create() for _ in range(4)]
    await read(client, was_read.secret_key)
    await client.delete(f"/receipts/{burned.receipt_key}")
    for _ in range(10):
        await read(client, locked.secret_key, "wrong")
    clock.forward(60)
    keys = [NOT_FOUND, "short", "%F0%9F%94%91", *(c.secret_key for c in (was_read, burned, locked, expired))]

    posts = [await read(client, key) for key in keys]
    gets = [await client.get(f"/secrets/{key}") for key in keys]

    assert {answer.status_code for answer in [*posts, *gets]} == {404}
    assert len({await answer.get_data() for answer in [*posts, *gets]}) == 1


async def test_wrong_passphrase_counts_down_and_locks(client: Client, created: Created) -> None:
    """Ten wrong passphrases lock a secret for the right one too, and its envelope is deleted."""
    answers = [await read(client, created.secret_key, "wrong") for _ in range(10)]

    assert {answer.status_code for answer in answers} == {403}
    assert [(await answer.get_json())["attempts_left"] for answer in answers] == list(range(9, -1, -1))
    assert (await read(client, created.secret_key)).status_code == 404
    assert await Envelope.count() == 0
    assert (await receipt(client, created))["state"] == "locked"


async def test_right_passphrase_on_the_last_attempt(client: Client, created: Created) -> None:
    """Nine wrong guesses leave one for the reader."""
    for _ in range(9):
        await read(client, created.secret_key, "wrong")

    answer = await read(client, created.secret_key)

    assert (await answer.get_json()) == {"secret": SECRET}
    assert (await receipt(client, created))["state"] == "read"


async def test_expiry_is_right_to_the_second(client: Client, created: Created, clock: Clock) -> None:
    """A secret can be read until its time and not at it, whenever the database reaps."""
    clock.forward(3599.999)
    assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 200

    clock.forward(0.001)

    assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 404
    assert (await read(client, created.secret_key)).status_code == 404
    assert (await receipt(client, created))["attempts_left"] == 10


@pytest.mark.parametrize(
    ("sealed", "names_key"),
    [(b"", False), (b"\x01" * 400, True), (b"\x01" + b"\x07" * 8 + b"$2b$04$" + b"." * 22 + bytes(12 + 271), True)],
    ids=["empty", "damaged", "unknown key"],
)
async def test_envelope_that_can_not_be_opened_costs_no_attempt(
    client: Client, created: Created, caplog: pytest.LogCaptureFixture, sealed: bytes, names_key: bool
) -> None:
    """A damaged envelope or a missing master key is a 503 and a log line with the key id, and takes no attempt."""
    await Envelope.get_motor_collection().update_one({}, {"$set": {"sealed": sealed}})

    answer = await read(client, created.secret_key)

    await check_problem(answer, 503, "unreadable-secret")
    assert (await receipt(client, created))["attempts_left"] == 10
    assert (sealed[1:9].hex() if names_key else "key id ?") in caplog.text


async def test_expired_secret_that_can_not_be_opened_is_gone(client: Client, created: Created, clock: Clock) -> None:
    """A secret past its ttl is a 404 like any other, even if the reaper left it and no key of the ring opens it."""
    await Envelope.get_motor_collection().update_one({}, {"$set": {"sealed": b"\x01" * 400}})
    stranger = await read(client, NOT_FOUND)
    clock.forward(3600)

    answer = await read(client, created.secret_key)

    assert (answer.status_code, await answer.get_data()) == (404, await stranger.get_data())
