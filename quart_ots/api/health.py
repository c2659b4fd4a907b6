"""For load balancers and supervisors: whether the service runs, and whether it can serve."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Blueprint, current_app
from quart_schema import tag, validate_response

from .bodies import HealthResponse
from .problems import documented, register

EXTENSION = "quart_ots.check_ready"
Check = Callable[[], Awaitable[None]]

blueprint = Blueprint("health", __name__, url_prefix="/health")
register(blueprint)


@blueprint.get("/live")
@validate_response(HealthResponse)
@tag(["health"])
async def live() -> HealthResponse:
    """See whether the service runs, whatever its database does."""
    return HealthResponse()


@blueprint.get("/ready")
@validate_response(HealthResponse)
@documented(503)
@tag(["health"])
async def ready() -> HealthResponse:
    """See whether the service can serve.

    It can while it is not being stopped, has room for another secret to be sealed or opened, and its database
    has its indexes and answers a read within a second. (A service without a master key does not start.)
    """
    check: Check = current_app.extensions[EXTENSION]
    await check()
    return HealthResponse()
