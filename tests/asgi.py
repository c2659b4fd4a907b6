"""A request as a server hands it to an app: message by message, and given up in every way in which a server does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from quart import Quart

Headers = Sequence[tuple[bytes, bytes]]


class Call:
    """One request, which begins at once. `sent` has the messages of its answer, `takes` is set while it is taken."""

    def __init__(
        self, app: Quart, method: str, path: str, body: bytes | None = None, headers: Headers = (), **scope: Any
    ) -> None:
        self.scope: dict[str, Any] = {
            **{"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path},
            **{"raw_path": path.encode(), "query_string": b"", "client": ("192.0.2.1", 4711)},
            "headers": [(b"host", b"h"), (b"content-type", b"application/json"), *headers],
            **scope,
        }
        self.sent: list[dict[str, Any]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if body is not None:
            self.send_body(body)
        serving: Any = app(self.scope, self._messages.get, self._send)  # type: ignore[arg-type]  # the scope is a dict
        self.task: asyncio.Task[None] = asyncio.ensure_future(serving)

    async def _send(self, message: Any) -> None:
        await self.takes.wait()
        self.sent.append(message)

    def send_body(self, body: bytes) -> None:
        """Let the body arrive, whole."""
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

    def hang_up(self) -> None:
        """Let the client close the connection."""
        self._messages.put_nowait({"type": "http.disconnect"})

    def drop(self) -> None:
        """Let the server give up the request, as it does at the end of a stop."""
        self.task.cancel()

    async def end(self) -> None:
        """Wait until the app is through with the request."""
        await asyncio.wait([self.task])

    @property
    def status(self) -> int:
        """The status of the answer, which was sent whole, and once."""
        assert [message["type"] for message in self.sent].count("http.response.start") == 1, self.sent
        start, *bodies = self.sent
        assert [message.get("more_body", False) for message in bodies] == [*[True] * (len(bodies) - 1), False]
        return int(start["status"])

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def json(self) -> Any:
        """The body of the answer."""
        return json.loads(b"".join(message["body"] for message in self.sent[1:]))
