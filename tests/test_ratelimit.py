"""Who a client is, and that its budget is exact."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import quart_rate_limiter
from hypothesis import given
from hypothesis import strategies as st
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import create_app, ratelimit
from quart_ots.ratelimit import BoundedStore, budget_of
from tests.conftest import post

PEER = "192.0.2.1"
PATHS = [("GET", f"/secrets/{'a' * 43}"), ("HEAD", f"/secrets/{'b' * 43}"), ("GET", f"/receipts/{'c' * 43}")]


class Standing(datetime):
    """A datetime whose now is what the test says."""

    moment = datetime(2100, 1, 31, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> type[Standing]:
    """Stop the limiter's clock."""
    monkeypatch.setattr(quart_rate_limiter, "datetime", Standing)
    monkeypatch.setattr(ratelimit, "datetime", Standing)
    monkeypatch.setattr(Standing, "moment", Standing.moment)
    return Standing


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the default limit."""
    return {name: value for name, value in settings.items() if name != "RATE_LIMIT"}


async def spend(client: Client, number: int, **headers: str) -> list[int]:
    """Send so many requests over the whole blueprint, and give their statuses."""
    statuses = []
    for index in range(number):
        method, path = PATHS[index % len(PATHS)]
        statuses.append((await client.open(path, method=method, json=None, headers=headers)).status_code)
    return statuses


async def test_limit_is_exactly_600(client: Client, stopped: type[Standing]) -> None:
    """600 requests over the whole blueprint pass at once; the 601st is told when to come back."""
    assert set(await spend(client, 600)) == {404}

    answer = await post(client, "/generate", {})

    assert answer.status_code == 429
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    assert (await answer.get_json())["type"] == "urn:quart-ots:problem:too-many-requests"


async def test_budget_comes_back_at_ten_a_second(client: Client, stopped: type[Standing]) -> None:
    """A spent budget gains one request each tenth of a second."""
    await spend(client, 601)
    stopped.moment += timedelta(seconds=1)

    statuses = await spend(client, 11)

    assert statuses == [404] * 10 + [429]


async def test_exempt_routes_cost_nothing(client: Client, stopped: type[Standing]) -> None:
    """Health, docs and paths that nothing serves neither spend a budget nor need one."""
    paths = ["/health/live", "/health/ready", "/docs", "/docs/docs.js", "/openapi.json", "/metrics", "/nowhere"]
    for path in paths * 10:
        await client.get(path)
    assert set(await spend(client, 600)) == {404}

    answers = [await client.get(path) for path in paths]

    assert not any("RateLimit-Remaining" in answer.headers for answer in answers)
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 200, 200, 200, 200, 200, 404]


async def test_second_app_is_not_limited_twice(
    app: Quart, client: Client, settings: dict[str, Any], stopped: type[Standing]
) -> None:
    """Another app in the same process has budgets of its own, and counts each request once."""
    other = create_app(settings)
    assert set(await spend(client, 600)) == {404}

    async with other.test_app():
        assert await spend(other.test_client(), 601) == [404] * 600 + [429]


async def test_forged_forwarded_for_gains_nothing(client: Client, stopped: type[Standing]) -> None:
    """Without a trusted proxy, a made-up X-Forwarded-For does not make a new client."""
    for index in range(600):
        await spend(client, 1, **{"X-Forwarded-For": f"198.51.100.{index % 250}"})

    assert await spend(client, 1, **{"X-Forwarded-For": "203.0.113.9"}) == [429]


def test_every_route_is_limited_or_exempt(app: Quart) -> None:
    """A new route has to be put on one of the two lists."""
    exempt = {"/docs", "/docs/<name>", "/openapi.json", "/health/live", "/health/ready", "/metrics"}
    limited = {"/generate", "/secrets/<secret_key>", "/receipts/<receipt_key>"}

    rules = {rule.rule: rule.endpoint.startswith("secrets.") for rule in app.url_map.iter_rules()}

    assert rules == {**dict.fromkeys(exempt, False), **dict.fromkeys(limited, True)}


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted_proxies", "budget"),
    [
        (PEER, [], 0, PEER),
        (PEER, ["198.51.100.1"], 0, PEER),
        (PEER, ["198.51.100.1"], 1, "198.51.100.1"),
        (PEER, ["6.6.6.6, 198.51.100.1"], 1, "198.51.100.1"),
        (PEER, ["6.6.6.6", "198.51.100.1"], 1, "198.51.100.1"),
        (PEER, ["6.6.6.6, 198.51.100.1 , 10.0.0.1"], 2, "198.51.100.1"),
        (PEER, ["198.51.100.1"], 2, PEER),
        (PEER, [], 1, PEER),
        (PEER, [""], 1, PEER),
        (PEER, ["unknown"], 1, PEER),
        (PEER, ["198.51.100.1, "], 1, PEER),
        (PEER, ["198.51.100.1:4711"], 1, "198.51.100.1"),
        (PEER, ["[2001:db8:1:2:3::4]:4711"], 1, "2001:db8:1:2::/64"),
        (PEER, ["2001:db8:1:2:ffff::"], 1, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::4", [], 0, "2001:db8:1:2::/64"),
        ("2001:db8:1:3::4", [], 0, "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.1", [], 0, PEER),
        ("fe80::1%eth0", [], 0, "fe80::/64"),
        ("local", [], 0, "local"),
    ],
)
def test_budget_of(peer: str, forwarded_for: list[str], trusted_proxies: int, budget: str) -> None:
    """A client is the address that the last trusted proxy saw, an IPv6 one its /64."""
    assert budget_of(peer, forwarded_for, trusted_proxies) == budget


@given(st.lists(st.text(max_size=50), max_size=3), st.integers(0, 3))
def test_budget_of_anything(forwarded_for: list[str], trusted_proxies: int) -> None:
    """No header raises an error, nor names a budget that is neither an address nor a /64."""
    budget = budget_of(PEER, forwarded_for, trusted_proxies)

    assert budget_of(budget.removesuffix("/64"), [], 0) == budget


async def test_store_forgets(stopped: type[Standing]) -> None:
    """A budget that is whole again is forgotten."""
    store = BoundedStore()
    for index in range(100):
        await store.set(f"a-b-c-{index}", stopped.moment + timedelta(seconds=1))
    stopped.moment += timedelta(seconds=2)

    await store.set("a-b-c-new", stopped.moment + timedelta(seconds=1))

    assert list(store._whole_at) == ["new"]


async def test_store_forgets_itself(stopped: type[Standing]) -> None:
    """A budget so large that it is whole again at once leaves an empty store, and no error."""
    store = BoundedStore()

    await store.set("a-b-c-1", stopped.moment)

    assert await store.get("a-b-c-1", stopped.moment) == stopped.moment
    assert not store._whole_at


async def test_store_is_bounded(stopped: type[Standing], monkeypatch: pytest.MonkeyPatch) -> None:
    """With more clients than it has room for, the store forgets the one unused for longest."""
    monkeypatch.setattr(ratelimit, "MAX_CLIENTS", 3)
    store = BoundedStore()
    later = stopped.moment + timedelta(seconds=1)
    for name in "abcad":
        await store.set(f"x-{name}", later)

    assert list(store._whole_at) == ["c", "a", "d"]
