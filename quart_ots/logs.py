"""What is logged, and how: one stream, JSON or colours, and nothing in it that a client sent.

No exception is logged with its message: those of protocol errors quote whole requests. Hypercorn's access records,
which can be written before the app sees a request, are rebuilt from the parts that hold nothing sent.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import structlog
from hypercorn.logging import AccessLogAtoms
from quart import Quart, has_request_context, request

from .observe import METHODS, UNKNOWN

# Hypercorn's names for what it or this service determines: status, length, times, process, scheme, protocol.
SAFE_ATOMS = frozenset({"t", "s", "st", "S", "H", "b", "B", "T", "D", "L", "p"})
HANDLER = "quart_ots"


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


class OneStreamFilter(logging.Filter):
    """Takes away the terminal that Hypercorn's loggers write to by themselves: ours is the one they propagate to.

    Its access log, which does not propagate, is off by that unless it goes to a file: a line for each request is ours.
    Done when a record comes, as Hypercorn makes the loggers after the app has started. The app's own is there before.
    """

    def __init__(self, app: Quart) -> None:
        super().__init__()
        self._app = app.logger.name

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record as it is, unless `quart run` hands an access record to the app's own logger."""
        if record.name == self._app:
            return not (isinstance(record.args, AccessLogAtoms) and _is_installed())
        if _is_installed():
            _take_terminal(record.name)
        return True


def _take_terminal(name: str) -> None:
    logger = logging.getLogger(name)
    logger.handlers = [handler for handler in logger.handlers if type(handler) is not logging.StreamHandler]


def describe(error: BaseException) -> str:
    """Give an exception's class, its route and its lines of code, and those of its causes, in one line.

    Not their messages, which may quote what was sent.
    """
    route = f" on {request.method} {request.url_rule or UNKNOWN}" if has_request_context() else ""
    chain, cause = f"{type(error).__name__}{route}{_places(error)}", _cause(error)
    while cause is not None:
        chain += f", after {type(cause).__name__}{_places(cause)}"
        cause = _cause(cause)
    return chain


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _places(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " at " + " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames) if frames else ""


def formatter(colours: bool, as_json: bool) -> logging.Formatter:
    """Write records, with the id of the request they belong to, as JSON or for people."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    last: list[Any] = [structlog.dev.ConsoleRenderer(colors=colours, timestamp_key="time")]
    if as_json:
        last = [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )


def _is_installed() -> bool:
    return any(handler.name == HANDLER for handler in logging.getLogger().handlers)


def install(config: Mapping[str, Any]) -> None:
    """Log everything to stderr, unless whoever embeds the app has said where to."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == HANDLER]:
        root.removeHandler(old)
    if root.handlers:
        return
    terminal = sys.stderr.isatty()
    as_json = config["LOG_FORMAT"] == "json" or (config["LOG_FORMAT"] == "auto" and not terminal)
    handler = logging.StreamHandler()
    handler.name = HANDLER
    handler.setFormatter(formatter(terminal, as_json))
    handler.addFilter(ExceptionFilter())
    # Also on the handler: Hypercorn gives its loggers a level of their own.
    handler.setLevel(config["LOG_LEVEL"].upper())
    root.addHandler(handler)
    root.setLevel(config["LOG_LEVEL"].upper())
    logging.captureWarnings(True)


def init_app(app: Quart) -> None:
    """Guard the loggers of the app and of its server, under any handler. Call it when all routes are there."""
    if _is_installed():
        _take_terminal(app.logger.name)
    filters = (AccessLogFilter(app), ExceptionFilter(), OneStreamFilter(app))
    for name in ("asyncio", "hypercorn.access", "hypercorn.error", app.logger.name):
        logger = logging.getLogger(name)
        # One process may make several apps, all of which log to the same loggers.
        for old in [filter_ for filter_ in logger.filters if type(filter_) in map(type, filters)]:
            logger.removeFilter(old)
        for new in filters:
            logger.addFilter(new)
