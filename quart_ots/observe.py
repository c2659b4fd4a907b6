"""One log line and one measurement for each request, an id to find it by, and nothing of what was sent in either.

Keys stand in paths, and servers log paths: the scope that the server logs from loses its path, query and headers
as soon as the app sees it, whatever server that is.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, request
from structlog.contextvars import bind_contextvars, get_contextvars

from . import metrics
from .ratelimit import client_address

Headers = list[tuple[bytes, bytes]]  # of an answer, names in lower case

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
UNKNOWN = "-"
SCENE = "quart_ots.scene"
# Too short for a key, which a confused client might send here too; a UUID has 36 characters, nginx's id 32.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,36}")


@dataclass
class Scene:
    """What is to be told of one request."""

    shown: dict[str, Any]  # the server's scope
    route: str = UNKNOWN
    status: int | None = None  # none yet, or none ever: the client hung up
    sent: int = 0  # bytes of the body


def request_id() -> str:
    """Give the id of the request that is being served."""
    return str(get_contextvars()["request_id"])


def read_target(target: str) -> str:
    """Give the path of a request's target, such as /a or http://h/a. "/", where nothing is, if it has none.

    Quart's own reading fails on an empty target and on a broken host: a 500.
    """
    try:
        path = target if target.startswith("/") else urlsplit(target).path
    except ValueError:
        path = ""
    return path if path.startswith("/") else "/"


def choose_id(sent: Iterable[str]) -> str:
    """Take over the id in an X-Request-ID header if it is one, else draw one: 32 hex digits."""
    # It has to be another each time, not to be kept from being guessed.
    return next(filter(_REQUEST_ID.fullmatch, sent), None) or f"{random.getrandbits(128):032x}"  # nosec B311


def init_app(app: Quart, harden: Callable[[Headers], Headers]) -> None:
    """Observe all requests.

    Args:
        app: Call it before what may refuse them.
        harden: Gives the headers that an answer goes out with, whoever made it, from those that it has.

    """
    inner = app.asgi_app

    async def asgi_app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            return await inner(scope, receive, send)
        started = time.perf_counter()
        scene = Scene(cast(dict[str, Any], scope))
        sent = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        # No route takes a query.
        private: Any = {**scope, SCENE: scene, "path": read_target(scope["path"]), "query_string": b""}
        scene.shown.update(path=UNKNOWN, raw_path=UNKNOWN.encode(), query_string=b"", headers=[])
        id_ = choose_id(value for name, value in sent if name == b"x-request-id")
        bind_contextvars(request_id=id_)

        async def observed_send(message: Any) -> None:
            if message["type"].endswith("http.response.start"):  # a refused websocket has it too
                scene.status = message["status"]
                headers = [*harden(message["headers"]), (b"x-request-id", id_.encode())]
                message = {**message, "headers": headers}
            await send(message)
            scene.sent += len(message.get("body", b""))

        try:
            await inner(private, receive, observed_send)
        finally:
            told: dict[str, Any] = {}
            if app.config["LOG_ADDRESSES"]:
                forwarded_for = [value for name, value in sent if name == b"x-forwarded-for"]
                peer = (scope.get("client") or ("local",))[0]
                told["address"] = str(client_address(peer, forwarded_for, app.config["TRUSTED_PROXIES"]))
            _tell(app, scene, private.get("method", "GET"), time.perf_counter() - started, told)

    app.asgi_app = asgi_app  # type: ignore[method-assign]  # Quart's own way to be wrapped
    app.before_request(_note_route)


async def _note_route() -> None:
    if request.url_rule is not None:
        scene: Scene = cast(dict[str, Any], request.scope)[SCENE]
        scene.route = scene.shown["path"] = request.url_rule.rule


def _tell(app: Quart, scene: Scene, method: str, seconds: float, told: dict[str, Any]) -> None:
    method = method if method in METHODS else UNKNOWN
    status = UNKNOWN if scene.status is None else scene.status
    metrics.REQUESTS.labels(method, scene.route, status).observe(seconds)
    sent = 0 if method == "HEAD" else scene.sent
    milliseconds = round(1000 * seconds, 3)
    facts = {"method": method, "route": scene.route, "status": status, "milliseconds": milliseconds, "bytes": sent}
    app.logger.info("request", extra={**facts, **told})
