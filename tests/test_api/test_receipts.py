"""GET and DELETE /receipts/{receipt_key}: what became of a secret, and burning it."""

from __future__ import annotations

import pytest
from quart.typing import TestClientProtocol as Client

from quart_ots.vault.store import Envelope
from tests.conftest import PHRASE, Clock, Created, read, receipt
from tests.test_api.conftest import check_problem

PHRASES = {"read": [PHRASE], "locked": ["wrong"] * 10, "expired": []}


async def test_receipt_tells_what_became(client: Client, created: Created, clock: Clock) -> None:
    """A receipt is pending without an end, then read with its time, and a right reading took an attempt."""
    pending = await receipt(client, created)
    clock.forward(5)
    await read(client, created.secret_key)

    after = await receipt(client, created)

    assert (pending["state"], pending["ended_at"], pending["attempts_left"]) == ("pending", None, 10)
    assert (after["state"], after["ended_at"], after["attempts_left"]) == ("read", "2100-01-31T12:00:05.000Z", 9)


async def test_receipt_of_an_expired_secret(client: Client, created: Created, clock: Clock) -> None:
    """A secret that nobody read ended when its time was over, to the millisecond."""
    clock.forward(4000)

    assert await receipt(client, created) == {
        "state": "expired",
        "created_at": "2100-01-31T12:00:00.000Z",
        "expires_at": "2100-01-31T13:00:00.000Z",
        "ended_at": "2100-01-31T13:00:00.000Z",
        "attempts_left": 10,
    }


async def test_locked_stays_locked_past_its_ttl(client: Client, created: Created, clock: Clock) -> None:
    """A locked secret ended when its last attempt was taken, and does not turn into an expired one."""
    for _ in range(10):
        clock.forward(1)
        await read(client, created.secret_key, "wrong")
    clock.forward(3600)

    body = await receipt(client, created)

    assert (body["state"], body["ended_at"]) == ("locked", "2100-01-31T12:00:10.000Z")


async def test_burn_ends_a_secret_unread(client: Client, created: Created, clock: Clock) -> None:
    """A burned secret can't be read, its envelope is gone, and burning it again answers the same."""
    clock.forward(7)
    first = await client.delete(f"/receipts/{created.receipt_key}")
    clock.forward(7)

    second = await client.delete(f"/receipts/{created.receipt_key}")

    assert first.status_code == second.status_code == 200
    assert await first.get_json() == await second.get_json() == await receipt(client, created)
    assert (await first.get_json())["state"] == "burned"
    assert (await first.get_json())["ended_at"] == "2100-01-31T12:00:07.000Z"
    assert (await read(client, created.secret_key)).status_code == 404
    assert await Envelope.count() == 0


@pytest.mark.parametrize("state", PHRASES)
async def test_burn_of_what_ended_otherwise(client: Client, created: Created, clock: Clock, state: str) -> None:
    """Who burns too late is told how the secret ended, and its receipt stays as it was."""
    for phrase in PHRASES[state]:
        await read(client, created.secret_key, phrase)
    clock.forward(3600 if state == "expired" else 1)
    before = await receipt(client, created)

    answers = [await client.delete(f"/receipts/{created.receipt_key}") for _ in range(2)]

    for answer in answers:
        problem = await check_problem(answer, 409, "already-ended")
        assert problem["state"] == before["state"] == state
    assert await receipt(client, created) == before


@pytest.mark.parametrize("key", ["a" * 43, "short"])
async def test_receipt_of_nothing(client: Client, key: str) -> None:
    """A receipt key that names nothing is not found, to look at and to burn."""
    look, burn = await client.get(f"/receipts/{key}"), await client.delete(f"/receipts/{key}")

    await check_problem(look, 404, "receipt-not-found")
    assert burn.status_code == 404
    assert await look.get_data() == await burn.get_data()


async def test_keys_are_not_interchangeable(client: Client, created: Created) -> None:
    """A reader's key shows and burns no receipt, and a creator's key reads nothing."""
    answers = [
        await client.get(f"/receipts/{created.secret_key}"),
        await client.delete(f"/receipts/{created.secret_key}"),
        await client.get(f"/secrets/{created.receipt_key}"),
        await read(client, created.receipt_key),
    ]

    assert {answer.status_code for answer in answers} == {404}
    assert (await receipt(client, created))["attempts_left"] == 10
