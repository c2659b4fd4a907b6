"""An asynchronous client for loads: one session for many requests, and services asked in turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp

from tests import client
from tests.service import PHRASE, Service

LOST = 0


class Answer(NamedTuple):
    """What came back: the status, LOST where no whole answer did, and the body."""

    status: int
    body: dict[str, Any]


class Api:
    """Asks services in turn. Never tries again.

    Args:
        session: Its connections.
        services: Whom to ask. They note what is sent, for the search of their logs.

    """

    def __init__(self, session: aiohttp.ClientSession, *services: Service) -> None:
        self._session = session
        self._services = services
        self._turn = 0

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """Send a request to the service whose turn it is."""
        self._turn += 1
        service = self._services[self._turn % len(self._services)]
        try:
            async with self._session.request(method, service.url + path, json=body) as response:
                return Answer(response.status, await response.json(content_type=None))
        except client.LOST:
            return Answer(LOST, {})

    async def fetch(self, path: str) -> int:
        """Get what is not JSON, whole; return the status."""
        async with self._session.get(self._services[0].url + path) as response:
            await response.read()
            return response.status

    async def generate(self, secret: str, phrase: str = PHRASE, **more: Any) -> Answer:
        """Create a secret."""
        answer = await self.ask("POST", "/generate", {"secret": secret, "passphrase": phrase, **more})
        if answer.status == 201:
            sent = (secret, phrase, answer.body["secret_key"], answer.body["receipt_key"])
            for service in self._services:
                service.sent |= {text for text in sent if len(text) > 12}  # shorter ones are found anywhere
        return answer

    async def read(self, secret_key: str, phrase: str = PHRASE) -> Answer:
        """Try to read a secret."""
        return await self.ask("POST", f"/secrets/{secret_key}", {"passphrase": phrase})

    async def look(self, secret_key: str) -> Answer:
        """See whether a secret waits."""
        return await self.ask("GET", f"/secrets/{secret_key}")

    async def receipt(self, receipt_key: str) -> Answer:
        """Look at a receipt."""
        return await self.ask("GET", f"/receipts/{receipt_key}")

    async def burn(self, receipt_key: str) -> Answer:
        """Burn a secret."""
        return await self.ask("DELETE", f"/receipts/{receipt_key}")


@contextlib.asynccontextmanager
async def connected(*services: Service, seconds: float = 60, kept: bool = False) -> AsyncIterator[Api]:
    """Make an Api for the time of a block.

    Args:
        services: Whom to ask.
        seconds: How long to wait for an answer.
        kept: Whether to send several requests on a connection. Not for services that are killed or measured.

    """
    idle: dict[str, Any] = {"keepalive_timeout": 2} if kept else {"force_close": True}
    connector = aiohttp.TCPConnector(limit=0, **idle)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(seconds)) as session:
        yield Api(session, *services)
    await asyncio.sleep(0)  # lets the transports close
