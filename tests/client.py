"""The suite's HTTP client: aiohttp, on an event loop in a thread of its own, so that any thread may use it.

Loads are made of `submit`, which returns at once: a hundred clients need no hundred threads.
"""

from __future__ import annotations

import asyncio
import functools
import json as json_module
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

# What a request raises that got no whole answer.
LOST = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class Answer:
    """What came back. The names of headers are compared without case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body."""
        return self.content.decode()

    def json(self) -> Any:
        """Parse the body."""
        return json_module.loads(self.content)

    @property
    def problem(self) -> str:
        """The name of the problem that it is; empty where it is none."""
        if not self.headers.get("Content-Type", "").startswith("application/problem+json"):
            return ""
        name: str = self.json()["type"]
        return name.removeprefix("urn:quart-ots:problem:")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="client").start()
    return loop


async def ask(
    method: str,
    url: str,
    *,
    json: Any = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 30,
) -> Answer:
    """Send a request on a connection of its own, and return the answer; no redirect is followed."""
    limit = aiohttp.ClientTimeout(seconds)
    sent = {"json": json, "data": data, "headers": headers, "timeout": limit, "allow_redirects": False}
    async with aiohttp.request(method, URL(url, encoded=True), **sent) as response:
        return Answer(response.status, response.headers, await response.read())


def submit(method: str, url: str, **more: Any) -> Future[Answer]:
    """Send a request and return at once; its arguments are those of `ask`."""
    return asyncio.run_coroutine_threadsafe(ask(method, url, **more), _loop())


def request(method: str, url: str, **more: Any) -> Answer:
    """Send a request and wait for its answer; its arguments are those of `ask`."""
    return submit(method, url, **more).result()


class Client:
    """Requests to one server, by their paths.

    Args:
        url: The server's.

    """

    def __init__(self, url: str) -> None:
        self.url = url

    def submit(self, method: str, path: str, **more: Any) -> Future[Answer]:
        """Send a request and return at once."""
        return submit(method, self.url + path, **more)

    def request(self, method: str, path: str, **more: Any) -> Answer:
        """Send a request and wait for its answer."""
        return self.submit(method, path, **more).result()

    def get(self, path: str, **more: Any) -> Answer:
        """Send a GET."""
        return self.request("GET", path, **more)

    def head(self, path: str, **more: Any) -> Answer:
        """Send a HEAD."""
        return self.request("HEAD", path, **more)

    def post(self, path: str, **more: Any) -> Answer:
        """Send a POST."""
        return self.request("POST", path, **more)

    def delete(self, path: str, **more: Any) -> Answer:
        """Send a DELETE."""
        return self.request("DELETE", path, **more)
