"""Counts and mass burning, in ranges that are far smaller than what there is."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from mongomock.collection import BulkOperationBuilder
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots.api import routes
from quart_ots.api.bodies import rfc3339
from quart_ots.vault import census
from quart_ots.vault.life import Services
from tests.conftest import PHRASE, SECRET, Clock, Created, post, read, receipt


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command looks at two documents."""
    monkeypatch.setattr(census, "RANGE", 2)
    monkeypatch.setattr(census, "BURN_RANGE", 2)


@pytest.fixture(autouse=True)
def bulk_writes_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mongomock takes a bulk write's updates as PyMongo has them since 4.11: with `sort`, which is None here."""
    add_update: Any = BulkOperationBuilder.add_update

    def add_unsorted(self: Any, *args: Any, sort: None = None, **more: Any) -> None:
        add_update(self, *args, **more)

    monkeypatch.setattr(BulkOperationBuilder, "add_update", add_unsorted)


@pytest.fixture
async def eleven(client: Client, clock: Clock) -> list[Created]:
    """Two secrets that have expired, one that was read, one burned, one locked, and six that wait."""
    made = []
    for ttl in (60, 60, *[3600] * 9):
        answer = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE, "ttl": ttl})
        made.append(Created(**await answer.get_json()))
    await read(client, made[2].secret_key)
    await client.delete(f"/receipts/{made[3].receipt_key}")
    await asyncio.gather(*(read(client, made[4].secret_key, "wrong") for _ in range(10)))
    clock.forward(120)
    return made


async def test_counts_by_state(eleven: list[Created], clock: Clock) -> None:
    """Each secret is counted once, in the state in which it is, and no step looks at more than its range."""
    seen: list[int] = []

    counts = await census.count_by_state(clock(), seen.append)

    assert counts == {"pending": 6, "read": 1, "burned": 1, "locked": 1, "expired": 2}
    assert (sum(seen), max(seen)) == (11, 2)


async def test_counts_by_key(app: Quart, eleven: list[Created], clock: Clock) -> None:
    """What can still be opened is counted under its key, with the time at which the last of it expires."""
    services: Services = app.extensions[routes.EXTENSION]

    uses = await census.count_by_key(clock())

    assert list(uses) == services.ring.ids
    (use,) = uses.values()
    assert use.live == 6
    assert rfc3339(use.until) == eleven[-1].expires_at
    assert await census.count_by_key(clock() + timedelta(hours=1)) == {}


async def test_nothing_is_there(app: Quart, clock: Clock) -> None:
    """An empty database has a 0 for each state, and no key."""
    assert set((await census.count_by_state(clock())).values()) == {0}
    assert await census.count_by_key(clock()) == {}
    assert await census.burn_all(clock(), clock()) == 0
    assert await census.estimate_secrets() == await census.estimate_envelopes() == 0


async def test_burn_all(client: Client, eleven: list[Created], clock: Clock) -> None:
    """What waits and was created before a time is burned, once, and nothing else changes its state."""
    seen: list[int] = []
    early = clock() - timedelta(hours=1)
    assert await census.count_live(clock(), early) == await census.burn_all(clock(), early) == 0
    assert await census.count_live(clock(), clock()) == 6

    burned = await census.burn_all(clock(), clock(), seen.append)

    assert (burned, sum(seen), max(seen)) == (6, 6, 2)
    counts = await census.count_by_state(clock())
    assert counts == {"pending": 0, "read": 1, "burned": 7, "locked": 1, "expired": 2}
    assert await census.count_by_key(clock()) == {}
    assert await census.count_live(clock(), clock()) == 0
    assert {(await read(client, one.secret_key)).status_code for one in eleven} == {404}
    assert (await receipt(client, eleven[-1]))["ended_at"] == rfc3339(clock())


async def test_burn_all_spares_what_came_later(client: Client, eleven: list[Created], clock: Clock) -> None:
    """A secret that was created at the time given or later is left."""
    border = clock()
    answer = await post(client, "/generate", {"secret": "a late secret", "passphrase": PHRASE, "ttl": 60})
    clock.forward(1)

    assert await census.burn_all(clock(), border) == 6

    late = await read(client, (await answer.get_json())["secret_key"])
    assert await late.get_json() == {"secret": "a late secret"}
