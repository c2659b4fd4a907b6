"""Each client's budget of requests.

quart-rate-limiter counts (GCRA, see its documentation); this module says what by. Its defaults take the first
X-Forwarded-For, which anyone can forge, count each endpoint apart, and never forget an address.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from quart import Blueprint, Quart, request
from quart_rate_limiter import RateLimit, RateLimiter, limit_blueprint
from quart_rate_limiter.store import RateLimiterStoreABC

from ..settings import Settings
from .clients import budget_of, peer_of

PERIOD = timedelta(minutes=1)
# A budget in use takes 257 bytes (by tracemalloc, CPython 3.11), so all of them 26 MB, and 34 MB for the moment in
# which their dictionary grows.
MAX_CLIENTS = 100_000
BUDGET = "quart_ots.budget"


def init_app(app: Quart, settings: Settings) -> None:
    """Let quart-rate-limiter judge the requests of the blueprints that are `limited`."""

    async def client() -> str:
        scope = cast(dict[str, Any], request.scope)
        if BUDGET not in scope:  # asked for three times a request
            forwarded_for = request.headers.getlist("X-Forwarded-For")
            scope[BUDGET] = budget_of(peer_of(scope), forwarded_for, settings.trusted_proxies)
        return cast(str, scope[BUDGET])

    RateLimiter(app, key_function=client, store=BoundedStore())


def limited(blueprint: Blueprint, settings: Settings) -> Blueprint:
    """Return a copy of a blueprint over which each client has one budget; a copy, as other apps share the original."""
    return limit_blueprint(copy(blueprint), limits=[RateLimit(settings.rate_limit, PERIOD)])


class BoundedStore(RateLimiterStoreABC):
    """Remembers when each budget will be whole again, and forgets it then.

    With more than MAX_CLIENTS budgets in use, the one unused for longest is forgotten: a client that commands that many
    networks has as many budgets anyway.
    """

    def __init__(self) -> None:
        self._whole_at: OrderedDict[str, datetime] = OrderedDict()

    async def get(self, key: str, default: datetime) -> datetime:
        """Return when the key's budget will be whole again."""
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
