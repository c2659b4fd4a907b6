"""Who a client is, and its budget of requests.

quart-rate-limiter counts (GCRA, see its documentation); here stands what it counts by. Its defaults take the
first X-Forwarded-For, which anyone can forge, count each endpoint apart, and never forget an address.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, cast

from quart import Quart, current_app, request
from quart_rate_limiter import RateLimit, RateLimiter, limit_blueprint
from quart_rate_limiter.store import RateLimiterStoreABC

PERIOD = timedelta(minutes=1)
# A budget in use takes 257 bytes (by tracemalloc, CPython 3.11), so all of them 26 MB, and 34 MB for the moment in
# which their dictionary grows.
MAX_CLIENTS = 100_000
# What an IPv6 customer is given at the least (RFC 6177, section 2), and so can choose addresses from.
IPV6_PREFIX = 64
BUDGET = "quart_ots.budget"


def init_app(app: Quart, limited: str) -> None:
    """Give each client one budget over the whole blueprint named, and none to spend elsewhere."""
    # Of a copy: the mark would be on the blueprint that all apps of the process share.
    own, limit = copy(app.blueprints[limited]), RateLimit(app.config["RATE_LIMIT"], PERIOD)
    app.blueprints[limited] = limit_blueprint(own, limits=[limit])
    RateLimiter(app, key_function=_client, store=BoundedStore())


async def _client() -> str:
    scope = cast(dict[str, Any], request.scope)
    if BUDGET not in scope:  # asked for three times a request
        peer = (scope.get("client") or ("local",))[0]
        trusted_proxies = current_app.config["TRUSTED_PROXIES"]
        scope[BUDGET] = budget_of(peer, request.headers.getlist("X-Forwarded-For"), trusted_proxies)
    return cast(str, scope[BUDGET])


def budget_of(peer: str, forwarded_for: Sequence[str], trusted_proxies: int) -> str:
    """Name the budget that a request is counted on: an IPv4 address, or the IPv6 network of the client's address."""
    address = client_address(peer, forwarded_for, trusted_proxies)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
    return str(address)


def client_address(peer: str, forwarded_for: Sequence[str], trusted_proxies: int) -> IPv4Address | IPv6Address | str:
    """Tell who a client is.

    Args:
        peer: The address that the connection comes from.
        forwarded_for: The X-Forwarded-For headers. Each proxy adds on the right whom it spoke to, so only as many
            entries from the right as there are trusted proxies can be believed.
        trusted_proxies: That number.

    Returns:
        The peer's where the headers have too few entries or no address there; as it is where that is none either.

    """
    entries = ",".join(forwarded_for).split(",")
    believed = _address(entries[-trusted_proxies].strip()) if 0 < trusted_proxies <= len(entries) else None
    return believed or _address(peer) or peer


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Give the address in a text such as 192.0.2.1, 192.0.2.1:80 or [2001:db8::1]:80, or None."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])  # a zone is any text
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class BoundedStore(RateLimiterStoreABC):
    """Remembers when each budget will be whole again, and forgets it then.

    With more than MAX_CLIENTS budgets in use, the one unused for longest is forgotten: whoever commands that many
    networks has as many budgets anyway.
    """

    def __init__(self) -> None:
        self._whole_at: OrderedDict[str, datetime] = OrderedDict()

    async def get(self, key: str, default: datetime) -> datetime:
        """Give when the key's budget will be whole again."""
        return self._whole_at.get(self._budget(key), default)

    async def set(self, key: str, tat: datetime) -> None:
        """Note when the key's budget will be whole again."""
        budget = self._budget(key)
        self._whole_at[budget] = tat
        self._whole_at.move_to_end(budget)
        now = datetime.now(UTC)
        while self._whole_at:
            unused, whole_at = next(iter(self._whole_at.items()))
            if whole_at > now and len(self._whole_at) <= MAX_CLIENTS:
                break
            del self._whole_at[unused]

    @staticmethod
    def _budget(key: str) -> str:
        """Drop the endpoint from quart-rate-limiter's key, app-endpoint-limit-client: endpoints share one budget."""
        return key.rpartition("-")[2]

    async def before_serving(self) -> None:
        """Nothing to set up."""

    async def after_serving(self) -> None:
        """Nothing to clean up."""
