"""Connects to MongoDB, or starts the embedded server; looks it over; tells when it is away."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

from beanie import init_beanie
from beanie.exceptions import CollectionWasNotInitialized
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from quart import Quart, Response

from . import checks, metrics
from .config import PREFIX, StartError, end_with, write_private
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
# Milliseconds for a command of the operator's, which may have a whole collection to count.
PATIENT = {"socketTimeoutMS": 600_000}
# Seconds between two looks at a database that was away at the start.
RETRY_INTERVAL = 1
# Seconds in which a database has to answer that shall be called ready.
READY_TIMEOUT = 1
PASSWORD_FILE = "database.password"  # noqa: S105  # nosec B105  # the name of a file


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
        self._prepared = False
        self._tasks: list[asyncio.Task[None]] = []
        if self._url is not None:
            _check_url(self._url)

    async def open(self) -> None:
        """Connect. A MongoDB that is away is waited for in the background; requests are told 503 meanwhile.

        Raises:
            StartError: The embedded database can't be started.

        """
        self._client = _client(await self._locate())
        if self._embedded is not None:
            self._logger.warning("embedded database: for local use by one process, not for real secrets under load")
            self._in_background(self._embedded.watch(self._read))
        await self._prepare()
        self._in_background(self._finish_checks())

    async def close(self) -> None:
        """Disconnect, and stop the embedded server."""
        for task in self._tasks:
            task.cancel()
        # Before the tasks end, one of which stops the embedded server: it is slow to end while a client is connected.
        if self._client is not None:
            self._client.close()
        # gather would hand on the cancellation of the tasks as an exception of its own
        await asyncio.wait(self._tasks)
        if self._embedded is not None:
            self._embedded.unlock()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open for the time of a block, for one of the operator's commands.

        Raises:
            StartError: It does not answer, then or within the block, or is too old, or another process uses the
                embedded one.

        """
        try:
            self._client = _client(await self._locate(), **PATIENT)
            await self._look_over()
            yield
        except PyMongoError as error:
            raise StartError(f"the database failed: {describe(error)}") from None
        except checks.OldDatabaseError as error:
            raise StartError(str(error)) from None
        finally:
            if self._client is not None:
                self._client.close()
            if self._embedded is not None:
                await self._embedded.stop()

    def init_app(self, app: Quart) -> None:
        """Open when the app starts to serve, close after it, and answer 503 while the database is away."""

        async def answer(error: Exception) -> Response:
            metrics.DATABASE_ERRORS.inc()
            if isinstance(error, PyMongoError):
                app.logger.error("the database failed: %s", describe(error))
            return await answer_api_error(DatabaseUnavailableError())

        app.register_error_handler(PyMongoError, answer)
        app.register_error_handler(CollectionWasNotInitialized, answer)
        app.before_serving(self.open)
        app.after_serving(self.close)

    async def check(self) -> None:
        """See whether it can serve.

        A read alone would not tell: it works as soon as Beanie knows the one collection, when the other and the
        indexes of both are still to come.

        Raises:
            PyMongoError: As the driver raises it.
            DatabaseUnavailableError: Not looked over yet, or no answer within READY_TIMEOUT.

        """
        if not self._prepared:
            raise DatabaseUnavailableError
        await self._read()

    async def _read(self) -> None:
        """Read something, or raise. A ping would not do: SecantusDB answers one even when its storage is broken."""
        try:
            await asyncio.wait_for(metrics.FIND.measure(Secret.get("none has this id")), READY_TIMEOUT)
        except TimeoutError:
            raise DatabaseUnavailableError from None

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._note_end)
        self._tasks.append(task)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Log what ended a task that nobody waits for."""
        if not task.cancelled() and (error := task.exception()):
            self._logger.error("a task has failed", exc_info=error)

    async def _look_over(self) -> None:
        """Check the server and make the indexes; PyMongoError or OldDatabaseError if it can't serve."""
        assert self._client is not None
        told = await checks.look_over_server(self._client)
        await init_beanie(self._client.get_default_database(NAME), document_models=[Secret, Envelope])
        for level, line in told:
            self._logger.log(level, line)
        self._logger.info("indexes: in place")

    async def _prepare(self) -> None:
        """Look the database over; from then on it can serve."""
        try:
            await self._look_over()
        except (PyMongoError, checks.OldDatabaseError) as error:
            reason = describe(error) if isinstance(error, PyMongoError) else str(error)
            self._logger.warning("the database is not ready: %s", reason)
        else:
            self._prepared = True

    async def _finish_checks(self) -> None:
        """Wait for a database that was away, and count the envelopes that can't be opened: there may be many."""
        while not self._prepared:
            await asyncio.sleep(RETRY_INTERVAL)
            await self._prepare()
        try:
            for level, line in await checks.look_over_keys(self._ring):
                self._logger.log(level, line)
        except PyMongoError as error:
            self._logger.warning("master keys: the envelopes under each could not be counted: %s", describe(error))

    async def _locate(self) -> str:
        """Give the database's URL, starting the embedded one if there is none; StartError if that fails."""
        if self._url is not None:
            return self._url
        self._embedded = EmbeddedDatabase(self._folder, self._logger)
        try:
            return await self._start_embedded(self._embedded)
        except (EmbeddedError, PyMongoError) as error:
            raise end_with(describe(error) if isinstance(error, PyMongoError) else str(error)) from None

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


def _client(url: str, **options: Any) -> AsyncIOMotorClient[dict[str, Any]]:
    return AsyncIOMotorClient(url, **{**OPTIONS, **options})


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
