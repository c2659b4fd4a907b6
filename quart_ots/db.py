"""Connects to MongoDB, or starts the embedded server; makes the indexes; tells when the database is away."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from beanie import init_beanie
from beanie.exceptions import CollectionWasNotInitialized
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from quart import Quart, Response

from .config import PREFIX, StartError, write_private
from .crypto import KeyRing
from .embedded import EmbeddedDatabase, EmbeddedError
from .errors import DatabaseUnavailableError, answer_api_error
from .models import Envelope, Secret, describe

NAME = "quart_ots"
# What counts whatever the URL says.
OPTIONS: dict[str, Any] = {
    "tz_aware": True,
    "appname": NAME,
    # Without a journal, writes that were answered are lost on kill -9. A secondary may not know yet that one is read.
    "w": "majority",
    "journal": True,
    "readPreference": "primary",
    "retryWrites": True,
    # Milliseconds. A database that is gone shows as 503 within seconds, and not as a hang.
    "serverSelectionTimeoutMS": 2000,
    "connectTimeoutMS": 2000,
    "socketTimeoutMS": 5000,
    "waitQueueTimeoutMS": 2000,
}
# Seconds between two tries to make the indexes of a database that was away at the start.
RETRY_INTERVAL = 1
PASSWORD_FILE = "database.password"  # noqa: S105  # the name of a file


class Database:
    """The service's database, from the start of the app to its end.

    Args:
        app: Read for its settings and its logger.
        ring: To count envelopes that were sealed under keys it lacks.

    """

    def __init__(self, app: Quart, ring: KeyRing) -> None:
        self._url: str | None = app.config["MONGODB_URL"]
        self._folder: Path = app.config["INSTANCE_PATH"]
        self._logger = app.logger
        self._ring = ring
        self._client: AsyncIOMotorClient[dict[str, Any]] | None = None
        self._embedded: EmbeddedDatabase | None = None
        self._tasks: list[asyncio.Task[None]] = []
        if self._url is not None:
            _check_url(self._url)

    async def open(self) -> None:
        """Connect. A MongoDB that is away is waited for in the background; requests are told 503 meanwhile.

        Raises:
            StartError: The embedded database can't be started.

        """
        url = self._url
        if url is None:
            self._embedded = EmbeddedDatabase(self._folder, self._logger)
            try:
                url = await self._start_embedded(self._embedded)
            except (EmbeddedError, PyMongoError) as error:
                # The process ends with this line; asyncio would add tracebacks of what it cancels.
                asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
                raise StartError(describe(error) if isinstance(error, PyMongoError) else str(error)) from None
            self._logger.warning("embedded database: for local use by one process, not for real secrets under load")
        self._client = _client(url)
        if self._embedded is not None:
            self._tasks.append(asyncio.create_task(self._embedded.watch(self.check)))
        if not await self._prepare():
            self._tasks.append(asyncio.create_task(self._prepare_later()))
        self._tasks.append(asyncio.create_task(self._warn_of_missing_keys()))

    async def close(self) -> None:
        """Disconnect, and stop the embedded server."""
        for task in self._tasks:
            task.cancel()
        # gather would hand on the cancellation of the tasks as an exception of its own
        await asyncio.wait(self._tasks)
        if self._client is not None:
            self._client.close()
        if self._embedded is not None:
            self._embedded.unlock()

    def init_app(self, app: Quart) -> None:
        """Open when the app starts to serve, close after it, and answer 503 while the database is away."""

        async def answer(error: Exception) -> Response:
            if isinstance(error, PyMongoError):
                app.logger.error("the database failed: %s", describe(error))
            return await answer_api_error(DatabaseUnavailableError())

        app.register_error_handler(PyMongoError, answer)
        app.register_error_handler(CollectionWasNotInitialized, answer)
        app.before_serving(self.open)
        app.after_serving(self.close)

    async def check(self) -> None:
        """Read something, or raise: PyMongoError, or CollectionWasNotInitialized before the indexes are made."""
        await Secret.get("none has this id")

    async def _prepare(self) -> bool:
        """Make the indexes; say whether that went well."""
        assert self._client is not None
        database = self._client.get_default_database(NAME)
        try:
            await init_beanie(database, document_models=[Secret, Envelope])
        except PyMongoError as error:
            self._logger.warning("the database is not ready: %s", describe(error))
            return False
        return True

    async def _prepare_later(self) -> None:
        while not await self._prepare():
            await asyncio.sleep(RETRY_INTERVAL)
        self._logger.warning("the database is ready")

    async def _warn_of_missing_keys(self) -> None:
        """Count envelopes that wait under keys the ring lacks. In the background, as there may be many."""
        missing = {"key_id": {"$nin": self._ring.ids}, "expires_at": {"$gt": datetime.now(UTC)}}
        while True:
            try:
                counts = await Envelope.aggregate(
                    [{"$match": missing}, {"$group": {"_id": "$key_id", "count": {"$sum": 1}}}]
                ).to_list()
            except (PyMongoError, CollectionWasNotInitialized):
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            for row in counts:
                self._logger.warning(
                    "%d secrets wait under master key %s, which the ring lacks", row["count"], row["_id"]
                )
            return

    async def _start_embedded(self, embedded: EmbeddedDatabase) -> str:
        """Start the embedded server and give its URL. The first start makes the user that later ones ask for."""
        embedded.lock()
        file = self._folder / PASSWORD_FILE
        if not file.exists():
            password = secrets.token_urlsafe(32)
            # SecantusDB makes users only while it runs without --auth: for that moment, before there is any data,
            # other local users could connect.
            await embedded.start(auth=False)
            client = _client(f"mongodb://127.0.0.1:{embedded.port}/?directConnection=true")
            try:
                await _make_user(client, password)
            finally:
                client.close()
                await embedded.stop()
            write_private(file, password)
        await embedded.start()
        password = quote(file.read_text())
        return f"mongodb://{NAME}:{password}@127.0.0.1:{embedded.port}/?authSource=admin&directConnection=true"


def _client(url: str) -> AsyncIOMotorClient[dict[str, Any]]:
    return AsyncIOMotorClient(url, **OPTIONS)


async def _make_user(client: AsyncIOMotorClient[dict[str, Any]], password: str) -> None:
    roles = [{"role": "readWrite", "db": NAME}]
    try:
        await client.admin.command("createUser", NAME, pwd=password, roles=roles)
    except OperationFailure:  # it is there: its password file was lost
        await client.admin.command("updateUser", NAME, pwd=password, roles=roles)


def _check_url(url: str) -> None:
    """Refuse a URL that no client can be made of, without showing it: it may hold a password."""
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise StartError(f"{PREFIX}_MONGODB_URL does not start with mongodb:// or mongodb+srv://")
    try:
        # Connects to nothing, but looks up the DNS of a mongodb+srv URL.
        with MongoClient[dict[str, Any]](url, connect=False, **OPTIONS) as client:
            client.get_default_database(NAME)
    except (PyMongoError, ValueError, OSError) as error:
        raise StartError(f"{PREFIX}_MONGODB_URL is no URL to reach MongoDB by: {type(error).__name__}") from None
