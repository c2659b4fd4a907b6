"""Runs the service as a process of its own, as an operator would."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from quart_ots.vault.crypto import is_key, new_master_key
from quart_ots.vault.keyring import encode
from tests.client import LOST, Answer, Client
from tests.mongod import free_port

ROOT = Path(__file__).parents[1]
PHRASE = "correct horse battery staple"
# {port} stands for the port.
SERVE = (sys.executable, "-m", "quart_ots", "serve", "--bind", "127.0.0.1:{port}")
# Bare, as somebody types it who has not read that there is `serve`.
HYPERCORN = (sys.executable, "-m", "hypercorn", "--bind", "127.0.0.1:{port}", "quart_ots:create_app()")
HYPERCORN_ALONE = (*HYPERCORN[:-1], "--workers", "0", HYPERCORN[-1])
QUART_RUN = (sys.executable, "-m", "quart", "--app", "quart_ots", "run", "--port", "{port}")
EVERY: list[Service] = []  # all services of the run, for their logs' sake


def draw_master_key() -> str:
    """Draw a master key, as a key file has it."""
    return encode(new_master_key())


def environment_of(settings: Mapping[str, str], source: Path = ROOT) -> dict[str, str]:
    """Return the environment of a process of ours with some settings, and none of the developer's own.

    Args:
        settings: Without the prefix.
        source: Where the package is.

    """
    outside = {name: value for name, value in os.environ.items() if not name.startswith("QUART_OTS_")}
    return {**outside, "PYTHONPATH": str(source), **{f"QUART_OTS_{name}": text for name, text in settings.items()}}


class Service:
    """One service process. Notes all secrets, passphrases and keys that went through it, for its log's sake.

    Args:
        folder: Where its instance folder and its log are.
        settings: Without the prefix.
        command: How to start it.
        source: Where the package is.
        wait: Whether to wait until it is ready.
        covered: Whether coverage measures it, which makes it half as fast. It measures commands in any case.

    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        command: Sequence[str] = SERVE,
        *,
        source: Path = ROOT,
        wait: bool = True,
        covered: bool = False,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"service-{self.port}.log"
        self.sent: set[str] = {PHRASE}
        self.folder = folder
        self.client = Client(self.url)
        defaults = {"INSTANCE_PATH": str(folder / "instance"), "BCRYPT_COST": "4", "RATE_LIMIT": "1000000"}
        self.environment = environment_of({**defaults, **settings}, source)
        self._command = [part.format(port=self.port) for part in command]
        self._covered = covered
        self.process = self.start(wait)
        EVERY.append(self)

    def start(self, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start it, and wait until it is ready unless told otherwise."""
        environment = self.environment
        if not self._covered:
            environment = {name: text for name, text in environment.items() if not name.startswith("COVERAGE_PROCESS_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait_until_ready()
        return self.process

    def wait_until_up(self) -> int:
        """Wait until it answers at all, and return the status of /health/ready."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(*LOST):
                return self.client.get("/health/ready", seconds=15).status
            assert self.process.poll() is None, self.logged()
            time.sleep(0.05)
        raise AssertionError(f"not up: {self.logged()}")

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Wait until /health/ready says so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(*LOST):
                if self.client.get("/health/ready", seconds=10).status == 200:
                    return
            assert self.process.poll() is None, self.logged()
            time.sleep(0.05)
        raise AssertionError(f"not ready within {seconds} s: {self.logged()}")

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def generate(self, secret: str = "the secret", phrase: str = PHRASE, **body: Any) -> dict[str, str]:
        """Create a secret, and return the answer's body."""
        return self.note(self.start_generate(secret, phrase, **body).result())

    def start_generate(self, secret: str = "the secret", phrase: str = PHRASE, **body: Any) -> Future[Answer]:
        """Send a secret without waiting for the answer, which is to be noted by `note`."""
        self.sent |= {secret, phrase}
        body = {"secret": secret, "passphrase": phrase, **body}
        return self.client.submit("POST", "/generate", json=body, seconds=60)

    def note(self, answer: Answer) -> dict[str, str]:
        """Note the keys that a creator was answered, and return the answer's body."""
        assert answer.status == 201, answer.text
        created: dict[str, str] = answer.json()
        self.sent |= {created["secret_key"], created["receipt_key"]}
        return created

    def read(self, secret_key: str, phrase: str = PHRASE) -> Answer:
        """Try to read a secret."""
        return self.start_read(secret_key, phrase).result()

    def start_read(self, secret_key: str, phrase: str = PHRASE) -> Future[Answer]:
        """Try to read a secret without waiting for the answer."""
        self.sent |= {secret_key, phrase}
        return self.client.submit("POST", f"/secrets/{secret_key}", json={"passphrase": phrase}, seconds=60)

    def look(self, secret_key: str) -> Answer:
        """See whether a secret waits."""
        return self.client.get(f"/secrets/{secret_key}")

    def burn(self, receipt_key: str) -> Answer:
        """Burn a secret."""
        return self.client.delete(f"/receipts/{receipt_key}")

    def receipt(self, receipt_key: str) -> dict[str, Any]:
        """Look at a receipt."""
        receipt: dict[str, Any] = self.client.get(f"/receipts/{receipt_key}").json()
        return receipt

    def figure(self, name: str) -> float:
        """Return the value of one of its metrics, named with its labels; 0 if it is not there."""
        return figure(self.client.get("/metrics").text, name)

    def leaks(self) -> list[str]:
        """Find what was sent in what was logged."""
        return find_leaks(self.sent, self.logged())

    def logged(self) -> str:
        """Return all that was logged."""
        return self.log.read_text(errors="replace")

    def command(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run one of the operator's commands with the service's settings."""
        return run_command(self.environment, self.folder, *words, **more)

    def database_process(self) -> int:
        """Return the process id of the embedded database."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"mongod" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                    return int(child)
        raise AssertionError("no embedded database runs")


def find_leaks(sent: Iterable[str], log: str) -> list[str]:
    """Find what was sent in a log."""
    # Keys, of which a load sends tens of thousands, are looked for where one could stand: mostly nowhere.
    long = "\n".join(re.findall(r"[A-Za-z0-9]{43,}", log))
    return [text for text in sent if text in (long if is_key(text) else log)]


def figure(metrics: str, name: str) -> float:
    """Return a sample's value, named with its labels; 0 if it is not there."""
    values = [line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0


def run_command(
    environment: Mapping[str, str], folder: Path, *words: str, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run one of the operator's commands in a folder."""
    more = {"input": "", "timeout": 60, **more}
    command = [sys.executable, "-m", "quart_ots", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **more)


@contextlib.contextmanager
def running(
    folder: Path, settings: Mapping[str, str], command: Sequence[str] = SERVE, **more: Any
) -> Iterator[Service]:
    """Run a service for the time of a block; then check that its log holds nothing that was sent."""
    service = Service(folder, settings, command, **more)
    try:
        yield service
    finally:
        service.stop()
    assert service.leaks() == []
