"""Requests that end before their answer: the client hangs up, or the server drops them at the end of a stop."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from quart import Quart, abort, request

from quart_ots.edge import request as edge_request
from quart_ots.edge.request import Requests, info, init_app, run_to_completion
from quart_ots.settings import Settings
from tests.asgi import Call

LAST_WORDS = {
    "dropped": (503, b'{"end": "dropped"}'),
    "unknown": (503, b'{"end": "unknown"}'),
    "failed": (500, b'{"end": "failed"}'),
}


class ExpectedError(Exception):
    """What a step may end with."""


@pytest.fixture
def bare() -> Quart:
    """A Quart of no API, around whose requests nothing stands yet."""
    return Quart("tests")


@pytest.fixture
def requests(bare: Quart, settings: Settings) -> Requests:
    """What stands around its requests now."""
    return init_app(bare, settings, LAST_WORDS)


async def echo() -> str:
    """Answer with the body."""
    return str(await request.get_data(as_text=True))


@pytest.fixture
async def app(bare: Quart, requests: Requests) -> AsyncIterator[Quart]:
    """That app, serving; at its end nothing of it is left to run."""
    bare.add_url_rule("/echo", "echo", echo, methods=["POST"])
    async with bare.test_app():
        yield bare
    assert not bare.background_tasks
    assert not requests.tasks


class Step:
    """A step that a handler takes, and that ends when the test says so.

    Args:
        app: What has the handler, at /step.
        error: What the step ends with, if not well.

    """

    def __init__(self, app: Quart, error: type[BaseException] | None = None) -> None:
        self.begun, self.released, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.gone = False  # for all that the step knows at its end
        self._error = error
        app.add_url_rule("/step", "step", self._handle)

    async def _handle(self) -> str:
        return await run_to_completion(self._run(), expected=(ExpectedError,))

    async def _run(self) -> str:
        gone = info().gone
        self.begun.set()
        await self.released.wait()
        self.gone = gone.done()
        self.ended.set()
        if self._error is not None:
            raise self._error("hunter2")
        return "done"

    async def call(self, app: Quart) -> Call:
        """Begin a request, and return it when the step has begun."""
        call = Call(app, "GET", "/step", b"")
        await self.begun.wait()
        return call


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the classes of the exceptions that were logged, and what else was logged as an error."""
    gc.collect()  # a future whose exception nobody asked for logs that at its end
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    # An app that another test has made may have reduced exceptions to their classes already, see ops.logs.
    return [
        type(record.exc_info[1]).__name__ if record.exc_info else record.message.removeprefix("unexpected ").split()[0]
        for record in records
    ]


async def rest() -> None:
    """Let everything go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answer(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A step's result is its handler's."""
    step = Step(app)
    call = await step.call(app)

    step.released.set()
    await call.end()

    assert (call.status, call.sent[1]["body"]) == (200, b"done")
    assert not step.gone
    assert errors(caplog) == []


async def test_error_is_the_handlers(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A step's error is raised in its handler, whether or not it is expected, and logged by whoever handles it."""
    step = Step(app, ExpectedError)
    app.register_error_handler(ExpectedError, lambda _: ("expected", 418))
    call = await step.call(app)

    step.released.set()
    await call.end()

    assert call.status == 418
    assert errors(caplog) == []


@pytest.mark.parametrize(
    ("error", "logged"),
    [(None, []), (ExpectedError, []), (KeyError, ["KeyError"])],
    ids=["well", "expected", "unexpected"],
)
async def test_hang_up(
    app: Quart, caplog: pytest.LogCaptureFixture, error: type[Exception] | None, logged: list[str]
) -> None:
    """A step goes on to its end when its client hangs up, and knows of it; only what is not expected is logged."""
    step = Step(app, error)
    call = await step.call(app)

    call.hang_up()
    await call.end()
    assert not step.ended.is_set()
    step.released.set()
    await step.ended.wait()
    await rest()

    assert step.gone
    assert call.sent == []
    assert errors(caplog) == logged


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [(None, 200, []), (ExpectedError, 418, []), (KeyError, 500, ["KeyError"])],
    ids=["well", "expected", "unexpected"],
)
@pytest.mark.parametrize("times", [1, 3])
async def test_drop(
    app: Quart,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception] | None,
    status: int,
    logged: list[str],
    times: int,
) -> None:
    """A step goes on when the server drops its request, however often, and knows of it; its handler's answer is sent.

    The server learns that its cancellation came through.
    """
    step = Step(app, error)
    app.register_error_handler(ExpectedError, lambda _: ("expected", 418))
    call = await step.call(app)

    for _ in range(times):
        call.drop()
        await rest()
    assert not call.task.done()
    step.released.set()
    await call.end()

    assert call.task.cancelled()
    assert step.gone
    assert call.status == status
    assert errors(caplog) == logged


async def test_drop_of_one_that_has_begun_nothing(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A request that still waits for its body is told at once that the server goes, and the line says the same."""
    caplog.set_level(logging.INFO)
    call = Call(app, "POST", "/echo")
    await rest()

    call.drop()
    await call.end()

    assert (call.status, call.json) == (503, {"end": "dropped"})
    assert call.headers["content-type"] == "application/problem+json"
    assert call.headers["cache-control"] == "no-store"
    assert (call.headers["retry-after"], call.headers["connection"]) == ("2", "close")
    (line,) = [record.__dict__ for record in caplog.records if record.message == "request"]
    assert (line["route"], line["status"]) == ("/echo", 503)


async def test_drop_of_one_whose_body_comes_after_all(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """What Quart still does for a request that was dropped reaches nobody: the answer was the last word."""
    call = Call(app, "POST", "/echo")
    await rest()
    call.drop()
    await call.end()

    call.send_body(b"late")
    await rest()

    assert call.status == 503
    assert errors(caplog) == []


async def test_drop_before_the_step_begins(app: Quart) -> None:
    """Dropped in the very moment in which its handler begins a step, a request is answered when that is done."""
    step = Step(app)
    call = Call(app, "GET", "/step", b"")
    while not app.background_tasks:
        await asyncio.sleep(0)
    assert not step.begun.is_set()

    call.drop()
    step.released.set()
    await call.end()

    assert step.ended.is_set()
    assert call.status == 200


async def test_step_that_takes_too_long(
    app: Quart, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dropped request waits for its step only so long; then it is answered, and nothing is sent after that."""
    monkeypatch.setattr(edge_request, "LAST", 0.01)
    step = Step(app)
    call = await step.call(app)

    call.drop()
    await call.end()
    assert not step.ended.is_set()
    step.released.set()
    await rest()

    assert step.gone
    assert (call.status, call.json) == (503, {"end": "unknown"})
    assert errors(caplog) == []


async def test_drop_of_one_whose_answer_is_on_its_way(app: Quart) -> None:
    """A request that is dropped between its step and its answer is answered, to a client that is slow to take it too.

    The step may have claimed a secret, which no other answer has.
    """
    step = Step(app)
    calls = [await step.call(app), Call(app, "GET", "/step", b""), Call(app, "GET", "/step", b"")]
    calls[0].takes.clear()
    step.released.set()
    await step.ended.wait()

    for call in calls:
        call.drop()
        await asyncio.sleep(0)
    await rest()
    calls[0].takes.set()
    await asyncio.gather(*(call.end() for call in calls))

    assert [call.status for call in calls] == [200, 200, 200]


async def test_drop_of_one_who_takes_no_answer(
    app: Quart, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes no answer is not waited for any longer, and what is left of the answer is not sent."""
    monkeypatch.setattr(edge_request, "LAST_ANSWER", 0.01)
    step = Step(app)
    call = await step.call(app)
    call.takes.clear()
    step.released.set()
    await rest()

    call.drop()
    await call.end()
    call.takes.set()
    await rest()

    assert [message["type"] for message in call.sent] == ["http.response.start"]
    assert errors(caplog) == []


async def test_end_of_all(app: Quart, requests: Requests) -> None:
    """All requests in flight can be dropped as the server does, and each is answered; later ones are served."""
    step = Step(app)
    calls = [await step.call(app), Call(app, "GET", "/step", b""), Call(app, "POST", "/echo")]
    await rest()

    requests.end()
    await rest()
    step.released.set()
    await asyncio.gather(*(call.end() for call in calls))

    assert [call.status for call in calls] == [200, 200, 503]
    later = Call(app, "GET", "/step", b"")
    await later.end()
    assert later.status == 200


async def test_stop_waits_for_steps(app: Quart) -> None:
    """The app's end waits for a step whose client has gone."""
    step = Step(app)
    call = await step.call(app)
    call.hang_up()
    await call.end()

    stop = asyncio.ensure_future(app.shutdown())
    await rest()
    assert not stop.done()
    step.released.set()
    await stop

    assert step.ended.is_set()


async def test_step_that_is_cut_off(bare: Quart, requests: Requests, caplog: pytest.LogCaptureFixture) -> None:
    """Where Quart's own patience with a step is over before the client's, the client is still answered."""
    bare.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 0.01
    step = Step(bare)
    await bare.startup()
    call = await step.call(bare)

    await bare.shutdown()
    await call.end()

    assert not step.ended.is_set()
    assert (call.status, call.json) == (503, {"end": "unknown"})
    assert errors(caplog) == []


async def test_handler_that_cancels_itself(app: Quart) -> None:
    """A handler that ends without an answer, for whatever reason, leaves no client without one."""

    async def fail() -> str:
        raise asyncio.CancelledError

    app.add_url_rule("/fail", "fail", fail)

    call = Call(app, "GET", "/fail", b"")
    await call.end()

    assert call.status == 503


@pytest.mark.parametrize("started", [False, True])
async def test_framework_that_fails(
    bare: Quart, settings: Settings, caplog: pytest.LogCaptureFixture, started: bool
) -> None:
    """A fault in Quart itself is logged and, if no answer was begun, a problem of ours, not the server's bare 500."""

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        raise KeyError("hunter2")

    bare.asgi_app = fail  # type: ignore[method-assign]
    init_app(bare, settings, LAST_WORDS)

    call = Call(bare, "GET", "/", b"")
    await call.end()

    assert call.task.exception() is None
    assert call.status == (200 if started else 500)
    assert started or call.json == {"end": "failed"}
    assert "connection" not in call.headers or call.headers["connection"] == "close"
    assert errors(caplog) == ["KeyError"]


async def test_gone_is_known_after_the_answer(app: Quart) -> None:
    """Once a request is answered, nobody waits for it any more."""
    kept: list[asyncio.Future[None]] = []

    async def keep() -> str:
        kept.append(info().gone)
        assert not kept[0].done()
        return abort(404)

    app.add_url_rule("/keep", "keep", keep)

    call = Call(app, "GET", "/keep", b"")
    await call.end()

    assert call.status == 404
    assert kept[0].done()
