"""503: what can't be done now takes nothing, and says when to come back."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from pymongo.errors import AutoReconnect
from quart import Response
from quart.typing import TestClientProtocol as Client

from tests.conftest import PHRASE, SECRET, Created, post, read, receipt
from tests.test_api.conftest import Gate, Intercept, begin_stop, check_problem, queued

CREATE = {"secret": SECRET, "passphrase": PHRASE}


@pytest.mark.parametrize("settings", [{"kdf_threads": 1, "kdf_queue": 0}], indirect=True)
async def test_full_pool_costs_no_attempt(client: Client, created: Created, gate: Gate) -> None:
    """With no slot for hashing, readers and creators are told to come back, and nobody loses an attempt."""
    gate.close()
    creation = asyncio.ensure_future(post(client, "/generate", CREATE))
    await gate.reached()

    answers = [await read(client, created.secret_key), await post(client, "/generate", CREATE)]

    for answer in answers:
        await check_problem(answer, 503, "busy")
    assert (await receipt(client, created))["attempts_left"] == 10
    gate.open()
    assert (await creation).status_code == 201
    assert (await read(client, created.secret_key)).status_code == 200


@pytest.mark.parametrize("settings", [{"kdf_threads": 2, "kdf_queue": 100}], indirect=True)
async def test_retry_after_is_estimated(client: Client, gate: Gate) -> None:
    """A full pool says to come back when those in line will be through: 102 requests, two threads, 65 ms a key."""
    gate.close()
    creations = asyncio.gather(*(post(client, "/generate", CREATE) for _ in range(102)))
    await gate.reached(2)
    await queued(99)

    answer = await post(client, "/generate", CREATE)

    await check_problem(answer, 503, "busy")
    assert answer.headers["Retry-After"] == str(math.ceil(102 / 2 * 0.065))
    gate.open()
    assert {answer.status_code for answer in await creations} == {201}


@pytest.mark.parametrize("settings", [{"kdf_threads": 1, "kdf_queue": 5}], indirect=True)
async def test_stop_sends_away_who_waits(client: Client, created: Created, gate: Gate) -> None:
    """At a stop, who waits for a slot is told at once and has lost nothing; what has been begun is finished."""
    gate.close()
    # One is hashed, one more has a slot: the pool holds it ready for the thread.
    begun = [asyncio.ensure_future(read(client, created.secret_key, "wrong")) for _ in range(2)]
    await gate.reached()
    waiting = [
        asyncio.ensure_future(read(client, created.secret_key)),
        asyncio.ensure_future(post(client, "/generate", CREATE)),
    ]
    await queued(2)

    await begin_stop()

    for answer in await asyncio.gather(*waiting):
        await check_problem(answer, 503, "draining")
    gate.open()
    assert [answer.status_code for answer in await asyncio.gather(*begun)] == [403, 403]
    assert (await receipt(client, created))["attempts_left"] == 8


async def test_stop_sends_away_who_comes_later(client: Client, created: Created) -> None:
    """Once the server stops, nothing more is sealed or opened on connections that are still there."""
    await begin_stop()

    answers = [await read(client, created.secret_key), await post(client, "/generate", CREATE)]

    for answer in answers:
        await check_problem(answer, 503, "draining")
    assert (await receipt(client, created))["attempts_left"] == 10


async def ask(client: Client, created: Created, operation: str) -> Response:
    """Ask for one of the operations."""
    if operation == "create":
        return await post(client, "/generate", CREATE)
    if operation in ("read", "guess"):
        return await read(client, created.secret_key, PHRASE if operation == "read" else "wrong")
    if operation == "look":
        return await client.get(f"/secrets/{created.secret_key}")
    path = f"/receipts/{created.receipt_key}"
    return await (client.get(path) if operation == "receipt" else client.delete(path))


@pytest.mark.parametrize(
    ("operation", "collection", "command"),
    [
        ("create", "envelopes", "insert_one"),
        ("create", "secrets", "insert_one"),
        ("read", "envelopes", "find_one"),
        ("read", "secrets", "update_one"),
        ("guess", "secrets", "find_one"),
        ("look", "envelopes", "find_one"),
        ("look", "secrets", "find_one"),
        ("receipt", "secrets", "find_one"),
        ("burn", "secrets", "update_one"),
        ("burn", "secrets", "find_one"),
    ],
)
async def test_failing_database(
    client: Client,
    created: Created,
    intercept: Intercept,
    caplog: pytest.LogCaptureFixture,
    operation: str,
    collection: str,
    command: str,
) -> None:
    """Any error of the driver's is a 503 that says when to come back, and a log line without its message."""

    async def fail(*_: Any, **__: Any) -> None:
        raise AutoReconnect(f"the driver quotes {created.secret_key}")

    intercept(collection, command, fail)

    answer = await ask(client, created, operation)

    await check_problem(answer, 503, "database-unavailable")
    assert "the database failed: AutoReconnect" in caplog.text
    assert created.secret_key not in caplog.text
