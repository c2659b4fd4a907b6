"""What is logged, and how: one stream, JSON or colours, and nothing in it that a client sent.

No exception is logged with its message: those of protocol errors quote whole requests.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

import structlog
from hypercorn.logging import AccessLogAtoms
from quart import has_request_context, request

from ..edge.request import UNKNOWN
from ..settings import Settings

HANDLER = "quart_ots"
# Whose records may hold what was sent.
LOGGERS = ("quart_ots", "asyncio", "hypercorn.access", "hypercorn.error")


class AccessLogFilter(logging.Filter):
    """Drops the server's own access records, which hold paths, and so keys: one line for each request is ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep the record."""
        return not isinstance(record.args, AccessLogAtoms)


class ExceptionFilter(logging.Filter):
    """Reduces what is logged of an exception, whoever logs it, to its class and place."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, without the text of the exception and of the line that reports it."""
        if record.exc_info and record.exc_info[1] is not None:
            record.msg, record.args = f"unexpected {describe(record.exc_info[1])}", None
            record.exc_info = record.exc_text = record.stack_info = None
        return True


def describe(error: BaseException) -> str:
    """Return an exception's class, its route and its lines of code, and those of its causes, in one line.

    Without their messages, which may quote what was sent.
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


class OneStreamFilter(logging.Filter):
    """Takes away the terminal handlers that Hypercorn gives its loggers: ours is the one that they propagate to.

    Done when a record comes, as Hypercorn makes them after the app.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record as it is."""
        own = logging.getLogger(record.name)
        own.handlers = [handler for handler in own.handlers if type(handler) is not logging.StreamHandler]
        return True


def formatter(colours: bool, as_json: bool) -> logging.Formatter:
    """Return a formatter that writes records, with the id of their request, as JSON or for people."""
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


def install(settings: Settings) -> None:
    """Log everything to stderr, unless the program that embeds the app has given the root logger a handler."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == HANDLER]:
        root.removeHandler(old)
    ours = not root.handlers
    if ours:
        terminal = sys.stderr.isatty()
        as_json = settings.log_format == "json" or (settings.log_format == "auto" and not terminal)
        handler = logging.StreamHandler()
        handler.name = HANDLER
        handler.setFormatter(formatter(terminal, as_json))
        handler.addFilter(ExceptionFilter())
        # Also on the handler: Hypercorn gives its loggers a level of their own.
        handler.setLevel(settings.log_level.upper())
        root.addHandler(handler)
        root.setLevel(settings.log_level.upper())
        logging.captureWarnings(True)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        # One process may make several apps, all of which log to the same loggers.
        for kind in (AccessLogFilter, ExceptionFilter, *([OneStreamFilter] if ours else [])):
            if not any(isinstance(present, kind) for present in logger.filters):
                logger.addFilter(kind())
