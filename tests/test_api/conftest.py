"""Fixtures of the API's tests: a database that fails as told, hashing that waits, clients that hang up, a stop."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import bcrypt
import pytest
from mongomock_motor import AsyncMongoMockCollection
from prometheus_client import REGISTRY
from quart import Quart, Response

# Asks for a command in the place of a database: gets the real command, and the arguments of the call.
Act: TypeAlias = Callable[..., Awaitable[Any]]
Intercept: TypeAlias = Callable[[str, str, Act], None]


@pytest.fixture
def intercept(monkeypatch: pytest.MonkeyPatch) -> Intercept:
    """A function that lets a test answer one command on one collection: by their names in MongoDB."""

    def intercept(collection: str, command: str, act: Act) -> None:
        real = getattr(AsyncMongoMockCollection, command)

        async def answer(self: Any, *args: Any, **more: Any) -> Any:
            command = functools.partial(real, self)
            return await (act(command, *args, **more) if self.name == collection else command(*args, **more))

        monkeypatch.setattr(AsyncMongoMockCollection, command, answer)

    return intercept


class Gate:
    """bcrypt behind a gate, which is open at first."""

    def __init__(self, hashpw: Callable[[bytes, bytes], bytes]) -> None:
        self._hashpw = hashpw
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Semaphore(0)
        self._opened = threading.Event()
        self._opened.set()

    def hashpw(self, password: bytes, salt: bytes) -> bytes:
        """Hash, once the gate is open."""
        if not self._opened.is_set():
            self._loop.call_soon_threadsafe(self._begun.release)
            assert self._opened.wait(60)
        return self._hashpw(password, salt)

    def close(self) -> None:
        """Let no hash through from now on."""
        self._opened.clear()

    async def reached(self, times: int = 1) -> None:
        """Return when as many more hashes have begun as told, and wait before the gate."""
        for _ in range(times):
            await self._begun.acquire()

    def open(self) -> None:
        """Let every hash through."""
        self._opened.set()


@pytest.fixture
async def gate(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    """The gate that all hashes go through."""
    gate = Gate(bcrypt.hashpw)
    monkeypatch.setattr(bcrypt, "hashpw", gate.hashpw)
    yield gate
    gate.open()


async def queued(number: int) -> None:
    """Return when as many requests as told wait for a slot."""
    while REGISTRY.get_sample_value("quart_ots_kdf_queued") != number:
        await asyncio.sleep(0.001)


async def hang_up(app: Quart, path: str, body: Any, moment: Awaitable[object]) -> list[Any]:
    """Post JSON, hang up at a moment, and return what was sent until then. What goes on is left to `finish`."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await moment
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path},
        **{"query_string": b"", "headers": [(b"host", b"h"), (b"content-type", b"application/json")]},
    }
    await app(scope, receive, send)
    return sent


async def finish(app: Quart) -> None:
    """Wait for what goes on although its client has hung up."""
    while app.background_tasks:
        await asyncio.gather(*app.background_tasks, return_exceptions=True)


def send_sigterm() -> None:
    """Tell the app of the test to stop or to drain, as an operator does."""
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "the app does not take SIGTERM"
    os.kill(os.getpid(), signal.SIGTERM)


async def begin_stop() -> None:
    """Stop the app of the test, and return when it has told its server: here that is this function."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, told.set)
    try:
        send_sigterm()
        await told.wait()
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def check_problem(answer: Response, status: int, name: str) -> dict[str, Any]:
    """Check that an answer is the problem named, and return its body."""
    text = await answer.get_data(as_text=True)
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json"), text
    problem: dict[str, Any] = json.loads(text)
    assert set(problem) >= {"type", "title", "status", "detail"}
    assert (problem["type"], problem["status"]) == (f"urn:quart-ots:problem:{name}", status)
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    return problem
