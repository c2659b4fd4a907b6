"""Log lines: one stream, nothing in it that was sent, and each request's lines under its id."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypercorn.config import Config
from hypercorn.logging import Logger
from quart import Quart

from quart_ots.ops import logs
from quart_ots.settings import Settings
from tests.asgi import Call


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record as the log has it, where that is JSON."""
    line: dict[str, Any] = json.loads(logs.formatter(colours=False, as_json=True).format(record))
    return line


async def test_unexpected_exception(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours is a 500 with the request's id, and one line with classes and places but no values."""
    caplog.set_level(logging.INFO)

    async def fail() -> str:
        try:
            return str(int("a local secret"))
        except ValueError as error:
            raise KeyError("another local secret") from error

    app.add_url_rule("/fail", "fail", fail)

    answer = await app.test_client().get("/fail", headers={"X-Request-ID": "try-1"})

    body = await answer.get_json(force=True)
    assert (answer.status_code, body["request_id"]) == (500, "try-1")
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    line = as_json(error)["message"]
    assert line.startswith("unexpected KeyError on GET /fail at ")
    assert ", after ValueError at " in line
    assert "local secret" not in caplog.text + line


def raised(error: Exception) -> Exception:
    """Return an error that was raised."""
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("hunter2"), "KeyError"),
        (raised(KeyError("hunter2")), "KeyError at "),
        (raised(ExceptionGroup("hunter2", [KeyError("hunter2")])), "ExceptionGroup at "),
    ],
)
@pytest.mark.parametrize("name", ["quart_ots", "asyncio", "hypercorn.error"])
def test_no_message_of_an_exception(
    app: Quart, caplog: pytest.LogCaptureFixture, name: str, error: Exception, told: str
) -> None:
    """Whoever logs an exception, its message, which may quote a request, is left out, and so is the text beside it."""
    logging.getLogger(name).error("failed for %s", "hunter2", exc_info=error)

    line = as_json(caplog.records[-1])["message"]

    assert line.startswith(f"unexpected {told}")
    assert "hunter2" not in caplog.text + line


def test_exception_that_has_no_cause_to_tell(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A cause that was suppressed is left out; one that came in between is not."""
    logger = logging.getLogger("quart_ots")
    for suppress in (False, True):
        error = raised(ValueError("hunter2"))
        error.__context__, error.__suppress_context__ = raised(KeyError("hunter2")), suppress
        logger.error("failed", exc_info=error)

    lines = [record.getMessage() for record in caplog.records[-2:]]

    assert [", after KeyError at " in line for line in lines] == [True, False]


async def test_request_id_in_every_line(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged while a request is served has its id; the request's own line has its facts beside that."""
    caplog.set_level(logging.INFO)
    formatted: list[dict[str, Any]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            formatted.append(as_json(record))

    async def log() -> str:
        logging.getLogger("quart_ots").warning("in between")
        return "done"

    app.add_url_rule("/log", "log", log)
    handler = Keeping()
    logging.getLogger().addHandler(handler)
    try:
        await Call(app, "GET", "/log", b"", [(b"x-request-id", b"try-1")]).end()
    finally:
        logging.getLogger().removeHandler(handler)

    between, request = formatted
    assert between.items() >= {"message": "in between", "level": "warning", "logger": "quart_ots"}.items()
    assert between["request_id"] == request["request_id"] == "try-1"
    facts = {"message": "request", "level": "info", "method": "GET", "route": "/log", "status": 200, "bytes": 4}
    assert request.items() >= facts.items()
    assert set(request) == {*facts, "logger", "time", "milliseconds", "request_id"}


def test_lines_for_people() -> None:
    """On a terminal a line is coloured text with the same facts."""
    record = logging.makeLogRecord({"name": "quart_ots", "msg": "request", "levelname": "INFO", "route": "/generate"})

    coloured = logs.formatter(colours=True, as_json=False).format(record)
    plain = logs.formatter(colours=False, as_json=False).format(record)

    assert "\x1b[" in coloured
    assert "\x1b[" not in plain
    for line in (coloured, plain):
        assert "/generate" in line
        assert not line.startswith("{")


@contextlib.contextmanager
def process(terminal: bool = False) -> Iterator[io.StringIO]:
    """Log as in a process whose logging nobody has set up yet, not even pytest, and keep what it writes to stderr."""
    loggers = [logging.getLogger(name) for name in (None, "py.warnings", *logs.LOGGERS)]
    kept = [(one, one.handlers, one.filters, one.level, one.propagate) for one in loggers]
    written = io.StringIO()
    written.isatty = lambda: terminal  # type: ignore[method-assign]
    for one in loggers:
        one.handlers, one.filters = [], []
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(sys, "stderr", written)
            warnings.simplefilter("always")
            yield written
    finally:
        logging.captureWarnings(False)
        for one, one.handlers, one.filters, level, one.propagate in kept:
            one.setLevel(level)


@pytest.mark.parametrize(
    ("settings", "terminal", "json_expected"),
    [
        ({"log_format": "auto"}, False, True),
        ({"log_format": "auto"}, True, False),
        ({"log_format": "json"}, True, True),
        ({"log_format": "console"}, False, False),
    ],
    indirect=["settings"],
)
def test_format(settings: Settings, terminal: bool, json_expected: bool) -> None:
    """JSON for programs, text for people, by the setting or by what stderr is."""
    with process(terminal) as written:
        logs.install(settings)
        logging.getLogger("quart_ots").info("a line")

    assert written.getvalue().startswith("{") == json_expected
    assert ("\x1b[" in written.getvalue()) == (terminal and not json_expected)


@pytest.mark.parametrize("settings", [{"log_level": "warning"}], indirect=True)
def test_level(settings: Settings) -> None:
    """Less is logged where the setting says so, by the server as well, which sets a level of its own."""
    with process() as written:
        logs.install(settings)
        server = Logger(Config())
        logging.getLogger("quart_ots").info("left out")
        logging.getLogger("hypercorn.error").info("left out")
        logging.getLogger("quart_ots").warning("kept")

        assert server.error_logger is not None
        assert server.error_logger.level == logging.INFO

    assert [json.loads(line)["message"] for line in written.getvalue().splitlines()] == ["kept"]


async def test_server_and_app_log_to_one_stream(settings: Settings) -> None:
    """The server's lines come once, in our format, and its access log, which has paths, not at all."""
    config = Config()
    config.accesslog = "-"
    scope: Any = {
        **{"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "client": ("192.0.2.1", 1)},
        **{"path": "/secrets/hunter2", "query_string": b"hunter2", "headers": []},
    }
    with process() as written:
        logs.install(settings)
        logs.install(settings)  # a process may make several apps
        server = Logger(config)
        await server.info("Running on %s", "an address")
        await server.access(scope, {"status": 200, "headers": []}, 0.1)

    (line,) = [json.loads(line) for line in written.getvalue().splitlines()]
    assert (line["logger"], line["message"]) == ("hypercorn.error", "Running on an address")


def test_warnings_are_lines(settings: Settings) -> None:
    """Python's warnings go to the same stream."""
    with process() as written:
        logs.install(settings)
        warnings.warn("take care", UserWarning, stacklevel=1)

    (line,) = [json.loads(line) for line in written.getvalue().splitlines()]
    assert line["logger"] == "py.warnings"
    assert "take care" in line["message"]


def test_logging_of_another_program(settings: Settings) -> None:
    """Where the program that embeds the app has set up logging, that is kept; messages are left out there too."""
    with process() as written:
        theirs = logging.StreamHandler(written)
        logging.getLogger().addHandler(theirs)
        logs.install(settings)
        logging.getLogger("quart_ots").error("failed", exc_info=raised(KeyError("hunter2")))

        assert logging.getLogger().handlers == [theirs]

    assert written.getvalue().startswith("unexpected KeyError at ")
    assert "hunter2" not in written.getvalue()
