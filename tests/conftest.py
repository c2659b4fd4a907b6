"""Fixtures of the in-process tests: an app on a database in memory, its client, a secret that waits."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mongomock_motor import AsyncMongoMockClient
from motor import motor_asyncio
from pydantic import SecretStr
from quart import Quart, Response
from quart.typing import TestClientProtocol as Client

from quart_ots import create_app
from quart_ots.settings import Settings

ROOT = Path(__file__).parents[1]
PHRASE = "correct horse battery staple"
SECRET = "the treasure is under the third palm"


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2100, 1, 31, 12, tzinfo=UTC)  # mongomock reaps by the real time

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


class MemoryAdmin:
    """The commands that mongomock lacks."""

    answers: ClassVar[dict[str, dict[str, Any]]] = {"buildInfo": {"version": "8.0.4"}, "hello": {}}

    async def command(self, name: str) -> dict[str, Any]:
        """Answer as a MongoDB would that is new enough and whose clock is right."""
        return {"localTime": datetime.now(UTC), **self.answers[name]}


class MemoryClient(AsyncMongoMockClient):  # type: ignore[type-arg]  # poses as Motor's at run time
    """mongomock-motor's client, with the calls that it lacks."""

    admin = MemoryAdmin()

    def get_default_database(self, name: str) -> Any:  # type: ignore[override]  # Motor's takes a name alone, too
        """Return the database in memory."""
        return self[name]


@dataclass
class Created:
    """What the creator of a secret knows."""

    secret_key: str
    receipt_key: str
    expires_at: str


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of the developer's own shell reach a test."""
    for name in os.environ:
        if name.startswith("QUART_OTS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every app of the test have a database in memory."""
    monkeypatch.setattr(motor_asyncio, "AsyncIOMotorClient", MemoryClient)


@pytest.fixture
def clock() -> Clock:
    """The app's clock."""
    return Clock()


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """What the app is called with, and what a test adds as its parameter."""
    return Settings(
        **{
            "instance_path": tmp_path / "instance",
            "mongodb_url": SecretStr("mongodb://unit.test/quart_ots"),
            "bcrypt_cost": 4,
            "rate_limit": 1_000_000,
            **getattr(request, "param", {}),
        }
    )


@pytest.fixture
async def app(settings: Settings, clock: Clock, memory: None) -> AsyncIterator[Quart]:
    """An app that serves, on a database in memory."""
    app = create_app(settings, clock)
    async with app.test_app():
        yield app


@pytest.fixture
def client(app: Quart) -> Client:
    """A client of that app."""
    return app.test_client()


@pytest.fixture
async def created(client: Client) -> Created:
    """A secret that waits."""
    answer = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE, "ttl": 3600})
    assert answer.status_code == 201
    return Created(**await answer.get_json())


async def post(client: Client, path: str, body: Any, **headers: str) -> Response:
    """Post JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(path, data=data, headers={"Content-Type": "application/json", **headers})


async def read(client: Client, secret_key: str, phrase: str = PHRASE) -> Response:
    """Try to read a secret."""
    return await post(client, f"/secrets/{secret_key}", {"passphrase": phrase})


async def receipt(client: Client, created: Created) -> dict[str, Any]:
    """Look at a receipt."""
    answer = await client.get(f"/receipts/{created.receipt_key}")
    assert answer.status_code == 200
    body: dict[str, Any] = await answer.get_json()
    return body
