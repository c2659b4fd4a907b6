"""Runs the service and its database as processes of their own, as an operator would."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx

from quart_ots.crypto import is_key

ROOT = Path(__file__).parents[1]
PHRASE = "correct horse battery staple"
RUST = shutil.which("secantusd-rs") or str(Path("~/.cargo/bin/secantusd-rs").expanduser())
EVERY: list[Service] = []  # all services of the run, for their logs' sake


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def uncovered(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what makes coverage follow a process."""
    return {name: value for name, value in environment.items() if not name.startswith("COVERAGE_PROCESS_")}


class Service:
    """One service process. Notes all secrets, passphrases and keys that went through it, for its log's sake.

    Args:
        folder: Where its instance folder and its log are.
        settings: Without the prefix.
        command: The server's; {port} stands for the port.
        source: Where the package is.
        wait: Whether to wait until it is ready.
        covered: Whether coverage measures it, which makes it half as fast. It measures commands in any case.

    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        *command: str,
        source: Path = ROOT,
        wait: bool = True,
        covered: bool = True,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"service-{self.port}.log"
        self.sent: set[str] = {PHRASE}
        self._command = [part.format(port=self.port) for part in command or HYPERCORN]
        defaults = {"INSTANCE_PATH": str(folder / "instance"), "BCRYPT_COST": "4", "RATE_LIMIT": "1000000"}
        environment = {f"QUART_OTS_{name}": value for name, value in {**defaults, **settings}.items()}
        outside = {name: value for name, value in os.environ.items() if not name.startswith("QUART_OTS_")}
        self._covered = covered
        self.environment = {**outside, "PYTHONPATH": str(source), **environment}
        self.folder = folder
        # Not kept alive: tests end services under their clients. By a header, as httpcore's pool with room for no idle
        # connection closes one at times that it has just given to another thread.
        self.client = httpx.Client(
            base_url=self.url, timeout=30, limits=httpx.Limits(max_connections=None), headers={"Connection": "close"}
        )
        self.process = self.start(wait)
        EVERY.append(self)

    def start(self, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start it, and wait until it is ready unless told otherwise."""
        environment = self.environment if self._covered else uncovered(self.environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait_until_ready()
        return self.process

    def wait_until_up(self) -> int:
        """Wait until it answers at all, and give the status of /health/ready."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.ConnectError):
                return self.client.get("/health/ready", timeout=15).status_code
            time.sleep(0.05)
        raise AssertionError(f"not up: {self.log.read_text()}")

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Wait until /health/ready says so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/health/ready", timeout=10).status_code == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"not ready within {seconds} s: {self.log.read_text()}")

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would, and give its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)

    def generate(self, secret: str = "the secret", phrase: str = PHRASE, **body: Any) -> dict[str, str]:
        """Create a secret, and give the answer's body."""
        answer = self.client.post("/generate", json={"secret": secret, "passphrase": phrase, **body})
        assert answer.status_code == 201, answer.text
        created: dict[str, str] = answer.json()
        self.sent |= {secret, phrase, created["secret_key"], created["receipt_key"]}
        return created

    def read(self, secret_key: str, phrase: str = PHRASE) -> httpx.Response:
        """Try to read a secret."""
        self.sent |= {secret_key, phrase}
        return self.client.post(f"/secrets/{secret_key}", json={"passphrase": phrase})

    def receipt(self, receipt_key: str) -> dict[str, Any]:
        """Look at a receipt."""
        receipt: dict[str, Any] = self.client.get(f"/receipts/{receipt_key}").json()
        return receipt

    def leaks(self) -> list[str]:
        """Find what was sent in what was logged."""
        log = self.logged()
        # Keys, of which a load sends tens of thousands, are looked for where one could stand: mostly nowhere.
        long = "\n".join(re.findall(r"[A-Za-z0-9]{43,}", log))
        return [text for text in self.sent if text in (long if is_key(text) else log)]

    def logged(self) -> str:
        """Give all that was logged."""
        paths = [self.log, self.folder / "access.log"]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def command(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run one of the operator's commands with the service's settings."""
        quart = [sys.executable, "-m", "quart", "--app", "quart_ots", "ots", *words]
        more = {"input": "", **more}
        return subprocess.run(
            quart, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, **more
        )

    def database_process(self) -> int:
        """Find the embedded database's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if b"secantusd" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        raise AssertionError("no embedded database runs")


SERVER = (
    *(sys.executable, "-m", "hypercorn", "--config", "python:quart_ots.server"),
    *("--workers", "0", "--bind", "127.0.0.1:{port}"),
)
HYPERCORN = (
    *SERVER,
    *(
        "--access-logfile",
        "access.log",
        "--access-logformat",
        '%(h)s "%(R)s" %(U)s %(s)s %(f)s %(a)s',
        "quart_ots:create_app()",
    ),
)
# But for the access log, which is the suite's.
AS_IN_PRODUCTION = (*HYPERCORN[:-1], "--worker-class", "uvloop", HYPERCORN[-1])


@contextlib.contextmanager
def running(folder: Path, settings: Mapping[str, str], *command: str, **more: Any) -> Iterator[Service]:
    """Run a service for the time of a block; then check that its log holds nothing that was sent."""
    service = Service(folder, settings, *command, **more)
    try:
        yield service
    finally:
        service.client.close()
        service.stop()
    assert service.leaks() == []


class Mongo:
    """A SecantusDB server of its own, for services that share a database by its URL.

    Args:
        folder: Where its data and its log are.
        options: More of its command's.

    """

    PROGRAM: ClassVar[tuple[str, ...]] = (str(Path(sys.executable).with_name("secantusd-py")), "--sync-on-commit")

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self.port = 0
        self.process = self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"mongodb://127.0.0.1:{self.port}/quart_ots?directConnection=true"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, on the port it had before, and wait until it listens."""
        log = self._folder / "mongo.log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [
                    *self.PROGRAM,
                    *("--port", str(self.port), "--storage-path", str(self._folder / "mongo")),
                    *self._options,
                ],
                env=uncovered(os.environ),
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if match := re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text()):
                self.port = int(match[1])
                return self.process
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        raise AssertionError("the database did not start")

    def pause(self) -> None:
        """Make it as slow as can be."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would: it takes no harm, see --sync-on-commit."""
        self.process.kill()
        self.process.wait()


class RustMongo(Mongo):
    """The Rust server of the same project, to which a command is a fraction of a millisecond. Not for faults."""

    PROGRAM = (RUST,)


def quick_database(folder: Path) -> Mongo:
    """Start the Rust server, or the Python one where it is not installed."""
    return (RustMongo if Path(RUST).exists() else Mongo)(folder)


class OtherMongo(Mongo):
    """A database server that was there before."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """Where it is."""
        return self._url
