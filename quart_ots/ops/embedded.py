"""The embedded database: SecantusDB as a child process that ends with its parent.

For local use by one process. It is run, not imported, as it is under another licence (GPL-2.0). Only the
standard library is imported here, because the child runs this file too: see `become_child`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import fcntl
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

# Seconds. A signal sent sooner after the port opens makes SecantusDB hang.
SETTLING = 0.5
# Seconds for the server to start, and for a predecessor that was killed to let go of the data.
START_TIMEOUT = 30
LOCKED_TIMEOUT = 5
# Seconds between two looks at whether the server still reads, and how many may fail before it is started again.
WATCH_INTERVAL = 5
WATCH_FAILURES = 3

_LISTENING = re.compile(rb"secantus listening on 127\.0\.0\.1:([0-9]+)")
_PR_SET_PDEATHSIG = 1  # prctl(2)


class EmbeddedError(Exception):
    """The embedded database can't be started. The text says why, in a line for the operator."""


class EmbeddedDatabase:
    """One SecantusDB server on loopback, on a port of its own choice.

    Args:
        folder: The instance folder; data is kept in its folder ``data``.
        logger: Told when the server died and was started again.

    """

    def __init__(self, folder: Path, logger: logging.Logger) -> None:
        self.port = 0  # the first start chooses; later ones keep it, as the client knows it
        self._folder = folder
        self._logger = logger
        self._process: asyncio.subprocess.Process | None = None
        self._last_lines: collections.deque[bytes] = collections.deque(maxlen=20)
        self._reader: asyncio.Task[None] | None = None
        self._started = 0.0
        self._lock = -1

    def lock(self) -> None:
        """Take the instance folder for this process; EmbeddedError if another one has it."""
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise EmbeddedError(
                f"another process uses the embedded database in {self._folder}; for several services or several "
                "workers, set QUART_OTS_MONGODB_URL to a MongoDB of their own"
            ) from None

    async def start(self, auth: bool = True) -> None:
        """Start the server and wait until it listens; `port` then says where. EmbeddedError if it does not."""
        deadline = asyncio.get_running_loop().time() + LOCKED_TIMEOUT
        while True:
            try:
                return await self._start(auth)
            except EmbeddedError:
                # A server that was killed a moment ago may still hold its files.
                locked = any(b"already being managed" in line for line in self._last_lines)
                if not locked or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def _start(self, auth: bool) -> None:
        server = shutil.which("secantusd-py", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if server is None:
            raise EmbeddedError(
                "QUART_OTS_MONGODB_URL is not set and the embedded database is not installed: "
                "set the one, or pip install 'quart_ots[embedded]'"
            )
        data = self._folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        settings = self._folder / "secantusd.toml"
        settings.touch(mode=0o600)  # named, so that one lying elsewhere is not found and read instead
        command = [server, "--config", str(settings), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--storage-path", str(data), "--sync-on-commit", "--cache-size", "64M"]
        command += ["--oplog-max-entries", "1000"] + ["--auth"] * auth
        self._last_lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", __file__, str(os.getpid()), *command),
            # Without the service's settings, among which may be its master keys.
            env={name: value for name, value in os.environ.items() if not name.startswith("QUART_OTS_")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the service, which then stops its database
        )
        listening = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read_log(self._process, listening))
        try:
            self.port = await asyncio.wait_for(listening, START_TIMEOUT)
        except TimeoutError:
            await self.stop()
            raise EmbeddedError(f"the embedded database did not start within {START_TIMEOUT} s") from None
        self._started = asyncio.get_running_loop().time()

    async def _read_log(self, process: asyncio.subprocess.Process, listening: asyncio.Future[int]) -> None:
        """Keep the server's pipe empty, note its port, and the end of its log for when it fails."""
        assert process.stderr is not None
        async for line in process.stderr:
            self._last_lines.append(line)
            if (match := _LISTENING.search(line)) and not listening.done():
                listening.set_result(int(match[1]))
        await process.wait()
        if not listening.done():
            last = self._last_lines[-1].decode(errors="replace").strip() if self._last_lines else "no reason given"
            listening.set_exception(EmbeddedError(f"the embedded database did not start: {last}"))

    async def watch(self, read: Callable[[], Awaitable[None]]) -> None:
        """Start the server again whenever it dies or stops reading; stop it when cancelled. Never returns.

        Args:
            read: Reads from the database, or raises. A ping would not do: SecantusDB answers one even when its
                storage is broken.

        """
        try:
            while True:
                await self._until_broken(read)
                self._logger.error("the embedded database has ended or is stuck: starting it again")
                await self.stop()
                try:
                    await self.start()
                except (EmbeddedError, OSError) as error:
                    self._logger.error("it does not start: %s", error)
                await asyncio.sleep(SETTLING)
        finally:
            await self.stop()

    async def _until_broken(self, read: Callable[[], Awaitable[None]]) -> None:
        assert self._process is not None
        failures = 0
        while failures < WATCH_FAILURES:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), WATCH_INTERVAL)
                return
            try:
                await read()
                failures = 0
            except Exception:  # whatever the driver raises
                failures += 1

    async def stop(self) -> None:
        """Stop the server: SIGTERM, again after a second, then SIGKILL, which loses nothing that was answered."""
        if self._process is None or self._process.returncode is not None:
            return
        await asyncio.sleep(max(0.0, self._started + SETTLING - asyncio.get_running_loop().time()))
        for number, patience in ((signal.SIGTERM, 1), (signal.SIGTERM, 4), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end(self._process), patience)
                break

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Wait until it has ended. It sees that it shall when somebody connects, and otherwise after two seconds."""
        while process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
            await asyncio.sleep(0.02)

    def unlock(self) -> None:
        """Let another process have the instance folder."""
        os.close(self._lock)


def become_child(parent: int, command: list[str]) -> None:
    """Become the server, and die when the parent does, by kill -9 too: it would keep the data locked.

    The signal survives exec. Linux only; elsewhere a server may outlive a service that was killed.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the service has ended meanwhile")
    os.umask(0o077)
    os.execv(command[0], command)  # noqa: S606  # nosec B606  # no shell is the point


if __name__ == "__main__":
    become_child(int(sys.argv[1]), sys.argv[2:])
