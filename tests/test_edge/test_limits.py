"""Each client's budget of requests, to the request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import quart_rate_limiter
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import create_app
from quart_ots.edge import limits
from quart_ots.edge.limits import MAX_CLIENTS, BoundedStore
from quart_ots.settings import Settings
from tests.conftest import post

PATHS = [("GET", f"/secrets/{'a' * 43}"), ("HEAD", f"/secrets/{'b' * 43}"), ("GET", f"/receipts/{'c' * 43}")]
LIMIT = Settings.model_fields["rate_limit"].default
FEW = pytest.mark.parametrize("settings", [{"rate_limit": 60}], indirect=True)


class Standing(datetime):
    """A datetime whose now is what the test says."""

    moment = datetime(2100, 1, 31, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return the moment."""
        return cls.moment


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> type[Standing]:
    """The limiter's clock, which stands still until it is moved."""
    monkeypatch.setattr(quart_rate_limiter, "datetime", Standing)
    monkeypatch.setattr(limits, "datetime", Standing)
    monkeypatch.setattr(Standing, "moment", Standing.moment)
    return Standing


async def spend(client: Client, number: int, **headers: str) -> list[int]:
    """Send so many requests over the whole blueprint, and return their statuses."""
    statuses = []
    for index in range(number):
        method, path = PATHS[index % len(PATHS)]
        statuses.append((await client.open(path, method=method, json=None, headers=headers)).status_code)
    return statuses


@pytest.mark.parametrize("settings", [{"rate_limit": LIMIT}], indirect=True)
async def test_default_is_exactly_600_a_minute(client: Client, stopped: type[Standing]) -> None:
    """600 requests over the whole blueprint pass at once, the next is told when to come back; then 10 a second do."""
    assert set(await spend(client, 600)) == {404}

    answer = await post(client, "/generate", {})

    assert answer.status_code == 429
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    assert (await answer.get_json())["type"] == "urn:quart-ots:problem:too-many-requests"
    stopped.moment += timedelta(seconds=1)
    assert await spend(client, 11) == [404] * 10 + [429]


@FEW
async def test_exempt_routes_cost_nothing(client: Client, stopped: type[Standing]) -> None:
    """Health, docs and paths that nothing serves neither spend a budget nor need one."""
    paths = ["/health/live", "/health/ready", "/docs", "/docs/docs.js", "/openapi.json", "/metrics", "/nowhere"]
    for path in paths * 2:
        await client.get(path)
    assert await spend(client, 61) == [404] * 60 + [429]

    answers = [await client.get(path) for path in paths]

    assert not any("RateLimit-Remaining" in answer.headers for answer in answers)
    assert [answer.status_code for answer in answers] == [200] * 6 + [404]


@FEW
async def test_second_app_is_not_limited_twice(
    app: Quart, client: Client, settings: Settings, stopped: type[Standing]
) -> None:
    """Another app in the same process has budgets of its own, and counts each request once."""
    other = create_app(settings)
    assert set(await spend(client, 60)) == {404}

    async with other.test_app():
        assert await spend(other.test_client(), 61) == [404] * 60 + [429]


@FEW
async def test_forged_forwarded_for_gains_nothing(client: Client, stopped: type[Standing]) -> None:
    """Without a trusted proxy, a made-up X-Forwarded-For does not make a new client."""
    for index in range(60):
        await spend(client, 1, **{"X-Forwarded-For": f"198.51.100.{index}"})

    assert await spend(client, 1, **{"X-Forwarded-For": "203.0.113.9"}) == [429]


@pytest.mark.parametrize("settings", [{"rate_limit": 60, "trusted_proxies": 1}], indirect=True)
async def test_clients_behind_a_proxy(client: Client, stopped: type[Standing]) -> None:
    """Behind a trusted proxy each client has its own budget, by the address that the proxy saw, whatever it sent."""
    for index in range(60):
        await spend(client, 1, **{"X-Forwarded-For": f"203.0.113.{index}, 198.51.100.1"})

    assert await spend(client, 1, **{"X-Forwarded-For": "198.51.100.1"}) == [429]
    assert await spend(client, 1, **{"X-Forwarded-For": "198.51.100.2"}) == [404]


async def test_store_forgets(stopped: type[Standing]) -> None:
    """A budget that is whole again is forgotten when the next one is spent."""
    store, long_ago = BoundedStore(), stopped.moment
    for index in range(100):
        await store.set(f"a-b-c-{index}", stopped.moment + timedelta(seconds=1))
    stopped.moment += timedelta(seconds=2)

    await store.set("a-b-c-new", stopped.moment + timedelta(seconds=1))

    assert [await store.get(f"a-b-c-{index}", long_ago) for index in range(100)] == [long_ago] * 100
    assert await store.get("a-b-c-new", long_ago) == stopped.moment + timedelta(seconds=1)


async def test_store_forgets_what_is_whole_at_once(stopped: type[Standing]) -> None:
    """A budget so large that it is whole again at once leaves an empty store, and no error."""
    store, long_ago = BoundedStore(), datetime(2000, 1, 1, tzinfo=UTC)

    await store.set("a-b-c-1", stopped.moment)

    assert await store.get("a-b-c-1", long_ago) == long_ago


async def test_store_is_bounded(stopped: type[Standing]) -> None:
    """With more clients than it has room for, the store forgets the one unused for longest."""
    store, unknown = BoundedStore(), stopped.moment
    later = stopped.moment + timedelta(seconds=1)
    for index in range(MAX_CLIENTS):
        await store.set(f"x-{index}", later)
    await store.set("x-0", later)

    await store.set("x-new", later)

    found = [await store.get(f"x-{name}", unknown) for name in ("0", "1", "2", "new")]
    assert found == [later, unknown, later, later]
