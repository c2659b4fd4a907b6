"""Keeps what clients send out of every log: keys stand in paths, and servers log paths.

The scope that the server logs from loses its path, query and headers as soon as the app sees it, whatever server
that is. Hypercorn's access records, which can be written before that if a client hangs up at once, are rebuilt
from the parts that hold nothing sent. And no exception is logged with its message: those of protocol errors
quote whole requests.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any, cast
from urllib.parse import urlsplit

from hypercorn.logging import AccessLogAtoms
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, has_request_context, request

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
# Hypercorn's names for what it or this service determines: status, length, times, process, scheme, protocol.
SAFE_ATOMS = frozenset({"t", "s", "st", "S", "H", "b", "B", "T", "D", "L", "p"})
SERVER_SCOPE = "quart_ots.server_scope"
UNKNOWN = "-"


class AccessLogFilter(logging.Filter):
    """Rebuilds Hypercorn's access records. No client address is among what is kept."""

    def __init__(self, app: Quart) -> None:
        super().__init__()
        self._routes = {rule.rule for rule in app.url_map.iter_rules()}

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, less what was sent."""
        atoms = record.args
        if isinstance(atoms, AccessLogAtoms):
            method = atoms["m"] if atoms["m"] in METHODS else UNKNOWN
            path = atoms["U"] if atoms["U"] in self._routes else UNKNOWN
            line = f"{method} {path} {atoms['H']}"
            # An AccessLogAtoms in its turn, for its "-" in place of what is missing.
            safe = AccessLogAtoms.__new__(AccessLogAtoms)
            safe.update({name: atoms[name] for name in SAFE_ATOMS}, m=method, U=path, Uq=path, r=line, R=line)
            record.args = safe
        return True


class ExceptionFilter(logging.Filter):
    """Reduces what is logged of an exception, by whomever, to its class and place."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, less all text of the exception and of the line that tells of it."""
        if record.exc_info and record.exc_info[1] is not None:
            record.msg, record.args = f"unexpected {describe(record.exc_info[1])}", None
            record.exc_info = record.exc_text = record.stack_info = None
        return True


def describe(error: BaseException) -> str:
    """Give an exception's class and its lines of code.

    Not its message nor those of its causes, which may quote what was sent.
    """
    request_ = f" on {request.method} {request.url_rule or UNKNOWN}" if has_request_context() else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return f"{type(error).__name__}{request_}{''.join(lines)}"


def read_target(target: str) -> str:
    """Give the path of a request's target, such as /a or http://h/a. "/", where nothing is, if it has none.

    Quart's own reading fails on an empty target and on a broken host: a 500.
    """
    try:
        path = target if target.startswith("/") else urlsplit(target).path
    except ValueError:
        path = ""
    return path if path.startswith("/") else "/"


def init_app(app: Quart) -> None:
    """Guard the app, and the loggers of its server. Call it when all routes are there."""
    inner = app.asgi_app

    async def asgi_app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            return await inner(scope, receive, send)
        shown = cast(dict[str, Any], scope)
        # No route takes a query.
        private: Any = {**shown, SERVER_SCOPE: shown, "path": read_target(shown["path"]), "query_string": b""}
        shown.update(path=UNKNOWN, raw_path=UNKNOWN.encode(), query_string=b"", headers=[])
        await inner(private, receive, send)

    async def show_route(response: Any) -> Any:
        if request.url_rule is not None:
            cast(dict[str, Any], request.scope)[SERVER_SCOPE]["path"] = request.url_rule.rule
        return response

    app.asgi_app = asgi_app  # type: ignore[method-assign]
    app.after_request(show_route)
    filters = (AccessLogFilter(app), ExceptionFilter())
    for name in ("asyncio", "hypercorn.access", "hypercorn.error", app.logger.name):
        logger = logging.getLogger(name)
        # One process may make several apps, all of which log to the same loggers.
        for old in [filter_ for filter_ in logger.filters if isinstance(filter_, AccessLogFilter | ExceptionFilter)]:
            logger.removeFilter(old)
        for new in filters:
            logger.addFilter(new)
