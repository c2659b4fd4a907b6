"""Keeps what clients send out of every log: keys stand in paths, and servers log paths.

Two locks on one door. The scope that the server logs from loses its path, query and headers as soon as the app
sees it, whatever server that is. And Hypercorn's access records, which can be written before that if a client
hangs up at once, are rebuilt from the parts that hold nothing sent.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, cast

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


def log_exception(
    logger: logging.Logger,
    error: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None],
) -> None:
    """Log where an unexpected exception came from: its class and its lines of code.

    Not its message nor those of its causes, which may quote what was sent.
    """
    place = f"{request.method} {request.url_rule or UNKNOWN}" if has_request_context() else UNKNOWN
    lines = []
    trace = error[2]
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"\n  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    logger.error("unexpected %s on %s%s", error[0].__name__ if error[0] else UNKNOWN, place, "".join(lines))


def init_app(app: Quart) -> None:
    """Close both doors. Call it when all routes are there."""
    inner = app.asgi_app

    async def asgi_app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            return await inner(scope, receive, send)
        shown = cast(dict[str, Any], scope)
        private: Any = {**shown, SERVER_SCOPE: shown}
        shown.update(path=UNKNOWN, raw_path=UNKNOWN.encode(), query_string=b"", headers=[])
        await inner(private, receive, send)

    async def show_route(response: Any) -> Any:
        if request.url_rule is not None:
            cast(dict[str, Any], request.scope)[SERVER_SCOPE]["path"] = request.url_rule.rule
        return response

    app.asgi_app = asgi_app  # type: ignore[method-assign]
    app.after_request(show_route)
    access = AccessLogFilter(app)
    for logger in (logging.getLogger("hypercorn.access"), app.logger):
        # One process may make several apps, all of which log to the same two loggers.
        for old in [filter_ for filter_ in logger.filters if isinstance(filter_, AccessLogFilter)]:
            logger.removeFilter(old)
        logger.addFilter(access)
