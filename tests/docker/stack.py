"""Compose projects and containers, as an operator has them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.client import LOST, Answer, Client
from tests.mongod import free_port, wait_for
from tests.service import PHRASE, ROOT

COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
IMAGE = "quart_ots:local"  # as docker-compose.yml names it
# What a proxy answers while the app that it has chosen is gone.
PROXY_ERRORS = frozenset({502, 504})
# Seconds for containers to come up, or back after a kill, on a busy machine.
PATIENCE = 120
# Requests at once, where none may be told 503 because the line is full.
BATCH = 50
# All of a test's requests come from one address.
UNLIMITED = {"QUART_OTS_RATE_LIMIT": "1000000"}


def run(*command: str) -> str:
    """Run a command that must work, and return its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def inspect(container: str) -> dict[str, Any]:
    """Return what Docker knows of a container."""
    (details,) = json.loads(run("docker", "inspect", container))
    found: dict[str, Any] = details
    return found


def logged(container: str) -> str:
    """Return all that a container has logged."""
    done = subprocess.run(["docker", "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def serves(container: str, path: str = "/health/live", host: str = "127.0.0.1") -> bool:
    """Return whether the service in a container answers a GET by 200; asked from within, at one of its addresses."""
    script = (
        "import sys; from http.client import HTTPConnection as C; c = C(sys.argv[1], 8080); "
        "c.request('GET', sys.argv[2]); sys.exit(c.getresponse().status != 200)"
    )
    done = subprocess.run(["docker", "exec", container, "python", "-c", script, host, path], capture_output=True)
    return done.returncode == 0


def crash(container: str) -> None:
    """Kill a container's first process as a crash would: its restart policy starts it again. Needs root."""
    os.kill(inspect(container)["State"]["Pid"], signal.SIGKILL)


def kill(container: str) -> None:
    """Kill a container as an operator would, which no restart policy undoes, and start it again."""
    run("docker", "kill", "-s", "KILL", container)
    run("docker", "start", container)


class Stack:
    """One compose project of its own, on free ports.

    Args:
        name: Tells it from those of other tests.
        files: Its compose files.
        port: The variable that chooses the port which clients use.
        folder: Where the compose files are.
        environment: More variables.

    """

    def __init__(
        self,
        name: str,
        *files: str,
        port: str = "PUBLISH_PORT",
        folder: Path = ROOT,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        own = free_port()
        outside = {name: text for name, text in os.environ.items() if not name.startswith("QUART_OTS_")}
        self.folder = folder
        self.environment = {
            **outside,
            "COMPOSE_PROJECT_NAME": f"quart-ots-test-{name}-{os.getpid()}",
            port: str(own),
            **environment,
        }
        # All of its lines are comments: not the .env of whoever runs the tests.
        self._command = [*COMPOSE, "--env-file", str(ROOT / ".env.example")]
        for file in files or ("docker-compose.yml",):
            self._command += ["-f", file]
        self.client = Client(f"http://127.0.0.1:{own}")

    def compose(self, *words: str) -> str:
        """Run docker-compose on the project."""
        done = subprocess.run(
            [*self._command, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self.compose("ps", "-q", service).split()

    def container(self, service: str) -> str:
        """Return the id of a service's only container."""
        (found,) = self.containers(service)
        return found

    def up(self, *words: str) -> None:
        """Start it, and wait until it is ready."""
        self.compose("up", "-d", *words)
        self.wait_until_ready()

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[Stack]:
        """Run it for the time of a block, and leave nothing behind."""
        try:
            self.up(*words)
            yield self
        finally:
            self.compose("down", "-v")

    def wait_until_ready(self) -> None:
        """Wait until a look at a secret is answered by 404: behind a proxy nobody can ask /health/ready."""
        wait_for(lambda: self.status(f"/secrets/{'a' * 43}") == 404, PATIENCE)

    def wait_until_steady(self) -> None:
        """Wait until a proxy gets an answer from each of its apps: it remembers those that are gone for a while."""
        wait_for(lambda: {self.status(f"/secrets/{'a' * 43}") for _ in range(20)} == {404}, PATIENCE)

    def status(self, path: str) -> int:
        """Get a path and return the status; 0 for none."""
        try:
            return self.client.get(path).status
        except LOST:
            return 0

    def start_generate(self, secret: str = "the secret") -> Future[Answer]:
        """Send a secret without waiting for the answer."""
        return self.client.submit("POST", "/generate", json={"secret": secret, "passphrase": PHRASE}, seconds=60)

    def generate(self, secret: str = "the secret") -> dict[str, str]:
        """Create a secret, and return the answer's body."""
        answer = self.start_generate(secret).result()
        assert answer.status == 201, answer.text
        created: dict[str, str] = answer.json()
        return created

    def start_read(self, created: dict[str, str]) -> Future[Answer]:
        """Try to read a secret without waiting for the answer."""
        body = {"passphrase": PHRASE}
        return self.client.submit("POST", f"/secrets/{created['secret_key']}", json=body, seconds=60)

    def read(self, created: dict[str, str]) -> Answer:
        """Try to read a secret."""
        return self.start_read(created).result()

    def receipt(self, created: dict[str, str]) -> dict[str, Any]:
        """Look at a secret's receipt."""
        receipt: dict[str, Any] = self.client.get(f"/receipts/{created['receipt_key']}").json()
        return receipt


@dataclass
class Load:
    """Creators and readers, and what they were answered. Each secret is tried by one reader, once."""

    stack: Stack
    unread: list[dict[str, str]] = field(default_factory=list)
    read: list[dict[str, str]] = field(default_factory=list)
    doubtful: list[dict[str, str]] = field(default_factory=list)  # read, perhaps: the answer was lost, or no answer
    statuses: Counter[int] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self, clients: int = 4) -> Iterator[Load]:
        """Put the load on the stack for the time of a block."""
        threads = [threading.Thread(target=self._act) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def _act(self) -> None:
        """Create two secrets and read one of them, until it is over."""
        while not self.over.is_set():
            for _ in range(2):
                answer = self._note(self.stack.start_generate("under load"))
                if answer is not None and answer.status == 201:
                    self.unread.append(answer.json())
            with contextlib.suppress(IndexError):
                secret = self.unread.pop()
                answer = self._note(self.stack.start_read(secret))
                (self.read if answer is not None and answer.status == 200 else self.doubtful).append(secret)

    def _note(self, asked: Future[Answer]) -> Answer | None:
        try:
            answer = asked.result()
        except LOST:
            time.sleep(0.1)
            return None
        self.statuses[answer.status] += 1
        if answer.status in PROXY_ERRORS:
            time.sleep(0.1)
        return answer

    def wait_for_more(self, number: int = 10) -> None:
        """Wait until so many more secrets were created and read."""
        created, read = self.statuses[201] + number, self.statuses[200] + number
        wait_for(lambda: self.statuses[201] >= created and self.statuses[200] >= read, PATIENCE)

    def check(self) -> None:
        """Check that each secret that was acknowledged is read exactly once, those of lost answers at most once."""
        reread, first, second = (self._read_all(one) for one in (self.read, self.unread, self.unread))
        assert set(reread) == {404}
        assert first == {200: len(self.unread)}
        assert set(second) == {404}
        for created in self.doubtful:
            answer, state = self.stack.read(created), self.stack.receipt(created)["state"]
            assert (answer.status, state) in {(200, "read"), (404, "read")}

    def _read_all(self, secrets: list[dict[str, str]]) -> Counter[int]:
        """Try to read secrets, fewer at once than may wait for a thread, and count the statuses."""
        statuses: Counter[int] = Counter()
        for start in range(0, len(secrets), BATCH):
            readings = [self.stack.start_read(created) for created in secrets[start : start + BATCH]]
            statuses.update(reading.result().status for reading in readings)
        return statuses
