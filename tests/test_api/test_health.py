"""/health: for supervisors and load balancers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pymongo.errors import AutoReconnect
from quart.typing import TestClientProtocol as Client

from tests.conftest import PHRASE, SECRET, Created, post, read
from tests.test_api.conftest import Gate, Intercept, begin_stop, check_problem, send_sigterm

CREATE = {"secret": SECRET, "passphrase": PHRASE}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_healthy(client: Client, path: str) -> None:
    """A service that is well says so, to GET and to HEAD."""
    get, head = await client.get(path), await client.head(path)

    assert get.status_code == head.status_code == 200
    assert await get.get_json() == {"status": "ok"}


async def test_database_away(client: Client, intercept: Intercept, caplog: pytest.LogCaptureFixture) -> None:
    """Without its database a service is not ready, but lives; the log has no message of the driver's."""

    async def fail(*_: Any, **__: Any) -> None:
        raise AutoReconnect("the driver quotes a document")

    intercept("secrets", "find_one", fail)

    ready, live = await client.get("/health/ready"), await client.get("/health/live")

    await check_problem(ready, 503, "database-unavailable")
    assert live.status_code == 200
    assert "quotes" not in caplog.text


@pytest.mark.parametrize("settings", [{"kdf_threads": 1, "kdf_queue": 0}], indirect=True)
async def test_pool_full(client: Client, gate: Gate) -> None:
    """A service that has no room for another secret is not ready until it has, but lives."""
    gate.close()
    creation = asyncio.ensure_future(post(client, "/generate", CREATE))
    await gate.reached()

    ready, live = await client.get("/health/ready"), await client.get("/health/live")

    await check_problem(ready, 503, "busy")
    assert live.status_code == 200
    gate.open()
    await creation
    assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize("settings", [{"drain": 300}], indirect=True)
async def test_draining(client: Client, created: Created, caplog: pytest.LogCaptureFixture) -> None:
    """A service that drains is not ready, but lives and serves all it is asked."""
    caplog.set_level(logging.WARNING)
    send_sigterm()

    while (ready := await client.get("/health/ready")).status_code == 200:
        await asyncio.sleep(0)

    await check_problem(ready, 503, "draining")
    assert (await client.get("/health/live")).status_code == 200
    assert (await post(client, "/generate", CREATE)).status_code == 201
    assert (await read(client, created.secret_key)).status_code == 200
    assert "draining: serving for 300 s more, but not ready" in caplog.text


async def test_stopping(client: Client) -> None:
    """A service that stops at once is not ready either, for those who still have a connection."""
    await begin_stop()

    await check_problem(await client.get("/health/ready"), 503, "draining")
