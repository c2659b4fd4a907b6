"""The connection to MongoDB, or to an embedded server; checks it at the start and whenever someone asks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeAlias

from beanie import init_beanie
from motor import motor_asyncio
from motor.frameworks import asyncio as motor_framework
from pymongo.errors import PyMongoError

from .. import metrics
from ..settings import Settings, StartError, variable
from ..vault.census import count_by_key
from ..vault.crypto import KeyRing
from ..vault.errors import DatabaseUnavailableError
from ..vault.pool import start_threads
from ..vault.store import Envelope, Secret, describe
from .embedded import EmbeddedDatabase, EmbeddedError

NAME = "quart_ots"
# What holds whatever the URL says.
OPTIONS: dict[str, Any] = {
    "tz_aware": True,
    "appname": NAME,
    # Without a journal, writes that were answered are lost on kill -9. A secondary may not know yet that one is read.
    "w": "majority",
    "journal": True,
    "readPreference": "primary",
    # What a receipt reports must not be rolled back: a primary that is cut off still sees writes that will be.
    "readConcernLevel": "majority",
    "retryWrites": True,
    # Milliseconds, below store.DEADLINE.
    "serverSelectionTimeoutMS": 2000,
    "connectTimeoutMS": 2000,
    "socketTimeoutMS": 5000,
    "waitQueueTimeoutMS": 2000,
}
# For the operator's commands, which may have a whole collection to count. Milliseconds.
PATIENT = {"socketTimeoutMS": 600_000}
# Threads that PyMongo starts when it connects: one, and two for each member of a replica set. Room for a set of five.
DRIVER_THREADS = 11
# Seconds between two tries to reach a database that was unreachable at the start.
RETRY_INTERVAL = 1
# Seconds in which a ready database answers.
READY_TIMEOUT = 1
OLDEST = (6, 0)
# Seconds. The service judges expiry by its own clock, the database's reaper by its own; further apart, and one of them
# is wrong: a secret could be reaped before its time, or services could disagree on which have expired.
MAX_SKEW = 5

logger = logging.getLogger("quart_ots")

Client: TypeAlias = "motor_asyncio.AsyncIOMotorClient[dict[str, Any]]"


class OldDatabaseError(Exception):
    """The database is older than any that this service keeps its promises on."""


class Database:
    """The service's database, from the start of the app to its end.

    Args:
        settings: Where it is.
        options: The driver's, beside OPTIONS.

    Raises:
        StartError: The URL is none.

    """

    def __init__(self, settings: Settings, **options: Any) -> None:
        self._folder = settings.instance_path
        self._program = settings.mongod
        url = settings.mongodb_url
        self._options = options
        self._client: Client | None = None if url is None else connect(url.get_secret_value(), **options)
        self._embedded: EmbeddedDatabase | None = None
        self._prepared = False
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, ring: KeyRing) -> None:
        """Connect. A MongoDB that is unreachable is retried in the background; requests are told 503 meanwhile.

        Args:
            ring: To count envelopes that were sealed under keys it lacks.

        Raises:
            StartError: The embedded database cannot be started.
            ThreadsError: The system refuses the driver's threads.

        """
        # All at once: one that cannot be started later would leave a command that the driver has queued in doubt.
        start_threads(motor_framework._EXECUTOR, motor_framework.max_workers)
        # PyMongo's own come when it connects. Without them it is blind: look for room now, while the start can fail.
        with ThreadPoolExecutor(DRIVER_THREADS) as probe:
            start_threads(probe, DRIVER_THREADS)
        await self._connect()
        if self._embedded is not None:
            logger.warning("embedded database: for local use by one process, not for real secrets under load")
            self._in_background(self._embedded.watch())
        await self._prepare()
        self._in_background(self._finish_checks(ring))

    async def close(self) -> None:
        """Disconnect, and stop the embedded server."""
        for task in self._tasks:
            task.cancel()
        if self._client is not None:
            self._client.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._embedded is not None:
            await self._embedded.stop()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open for the time of a block, for one of the operator's commands.

        Raises:
            StartError: It does not answer, then or within the block, or is too old, or another process uses the
                embedded one.

        """
        try:
            await self._connect()
            await self._check_server()
            yield
        except PyMongoError as error:
            raise StartError(f"the database failed: {describe(error)}") from None
        except OldDatabaseError as error:
            raise StartError(str(error)) from None
        finally:
            if self._client is not None:
                self._client.close()
            if self._embedded is not None:
                await self._embedded.stop()

    async def check(self) -> None:
        """Return if it can serve.

        A read alone would not tell: it works as soon as Beanie knows the one collection, when the other and the
        indexes of both are still to come.

        Raises:
            DatabaseUnavailableError: Not checked yet, or no answer within READY_TIMEOUT.

        """
        if not self._prepared:
            raise DatabaseUnavailableError
        await self._read()

    async def _read(self) -> None:
        """Read something. A ping would not do: it may work where reading does not."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await metrics.FIND.measure(Secret.get("none has this id"))
        except (PyMongoError, TimeoutError):
            raise DatabaseUnavailableError from None

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_log_failure)
        self._tasks.append(task)

    async def _check_server(self) -> None:
        """Check the server and make the indexes; PyMongoError or OldDatabaseError if it cannot serve."""
        assert self._client is not None
        told = await check_server(self._client)
        await init_beanie(self._client.get_default_database(NAME), document_models=[Secret, Envelope])
        for level, line in told:
            logger.log(level, line)
        logger.info("indexes: in place")

    async def _prepare(self) -> None:
        """Check the database; from then on it can serve."""
        try:
            await self._check_server()
        except (PyMongoError, OldDatabaseError) as error:
            reason = describe(error) if isinstance(error, PyMongoError) else str(error)
            logger.warning("the database is not ready: %s", reason)
        else:
            self._prepared = True

    async def _finish_checks(self, ring: KeyRing) -> None:
        """Retry while the database is unreachable; then count the envelopes that can't be opened: there may be many."""
        while not self._prepared:
            await asyncio.sleep(RETRY_INTERVAL)
            await self._prepare()
        try:
            uses = await count_by_key(datetime.now(UTC))
        except PyMongoError as error:
            logger.warning("master keys: the envelopes under each could not be counted: %s", describe(error))
            return
        missing = {id_: use for id_, use in uses.items() if id_ not in ring.ids}
        for id_, use in missing.items():
            logger.warning("%d secrets wait under master key %s, which the ring lacks", use.live, id_)
        if not missing:
            logger.info("master keys: %s open every envelope", ", ".join(ring.ids))

    async def _connect(self) -> None:
        """Connect to the server that the URL names, else start the embedded one; StartError if that fails."""
        if self._client is not None:
            return
        self._embedded = EmbeddedDatabase(self._folder, self._program, logger)
        try:
            await self._embedded.start()
        except EmbeddedError as error:
            raise StartError(str(error)) from None
        self._client = connect(self._embedded.url, **self._options)


def connect(url: str, **options: Any) -> Client:
    """Return a client for a URL, which connects when it is first used.

    Raises:
        StartError: No client can be made of the URL, which is not shown: it may hold a password.

    """
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise StartError(f"{variable('mongodb_url')} does not start with mongodb:// or mongodb+srv://")
    try:
        # Looks up the DNS of a mongodb+srv URL.
        client: Client = motor_asyncio.AsyncIOMotorClient(url, **{**OPTIONS, **options})
        client.get_default_database(NAME)
    except (PyMongoError, ValueError, OSError) as error:
        raise StartError(f"{variable('mongodb_url')} is no URL to reach MongoDB by: {type(error).__name__}") from None
    return client


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log what ended a task that nobody waits for."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("a task has failed", exc_info=error)


async def check_server(client: Client) -> list[tuple[int, str]]:
    """Check the server's version and clock.

    Returns:
        Lines for the log, each with its level.

    Raises:
        PyMongoError: It does not answer.
        OldDatabaseError: It is too old.

    """
    version = (await client.admin.command("buildInfo"))["version"]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise OldDatabaseError(f"it is version {version}, and {OLDEST[0]}.{OLDEST[1]} or newer is needed")
    sent = datetime.now(UTC)
    hello = await client.admin.command("hello")
    received = datetime.now(UTC)
    if "setName" in hello:
        kind = f"replica set {hello['setName']}"
    else:
        kind = "sharded" if hello.get("msg") == "isdbgrid" else "standalone"
    theirs = hello["localTime"].replace(tzinfo=UTC)
    return [(logging.INFO, f"database: version {version}, {kind}"), describe_skew(theirs, sent, received)]


def describe_skew(theirs: datetime, sent: datetime, received: datetime) -> tuple[int, str]:
    """Compare the database's clock with ours, of which we know the time at which we asked and that of the answer.

    Returns:
        A line for the log, with its level: a warning beyond MAX_SKEW.

    """
    ahead = (theirs - sent - (received - sent) / 2).total_seconds()
    line = f"clock: the database's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) <= MAX_SKEW:
        return logging.INFO, line
    return logging.WARNING, f"{line}: secrets may expire too early or too late; set the clocks"
