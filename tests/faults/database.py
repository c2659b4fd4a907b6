"""Faults of the database, by mongod's own failCommand, on each command of each operation.

mongod fails a command before it runs it (``errorCode``, ``closeConnection``), slows it (``blockConnection``), or runs
it and adds that a majority did not confirm it (``writeConcernError``). What is cut off *after* it ran is in network.py.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.client import Answer
from tests.faults.finding import Finding
from tests.faults.stage import Stage, lent, staged_on, staged_on_set
from tests.mongod import Client, Mongod, ReplicaSet, disarm, failing_nth, failpoint, wait_for
from tests.service import PHRASE

AGAIN = ["RetryableWriteError"]
FAULTS: dict[str, dict[str, Any]] = {
    "closed connection": {"closeConnection": True},
    "ShutdownInProgress": {"errorCode": 91, "errorLabels": AGAIN},
    "NotWritablePrimary": {"errorCode": 10107, "errorLabels": AGAIN},
    "InterruptedAtShutdown": {"errorCode": 11600, "errorLabels": AGAIN},
    "PrimarySteppedDown": {"errorCode": 189, "errorLabels": AGAIN},
    "MaxTimeMSExpired": {"errorCode": 50},
    "an error": {"errorCode": 1},
    "no majority": {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
    "0.3 s late": {"blockConnection": True, "blockTimeMS": 300},
}
# Which mongod returns with writes alone, and until the answer alone: it does not count how often.
OF_WRITES = ("no majority",)
WRITES = ("insert", "update", "delete")
# once: the driver may retry and win. until the answer: its retry fails too, and whatever else is tried.
FOR = ("once", "until the answer")
# Milliseconds. As a failpoint changes no topology, mongod does not tell a driver that waits for news that all is well.
HEARTBEAT = "&heartbeatFrequencyMS=500"
# The operations that are tried again also when all went well.
REPEATED = ("create", "burn", "last guess")


class Operation(NamedTuple):
    """One call of the API, the status it has when all is well, and its commands in their order."""

    name: str
    right: int
    commands: tuple[str, ...]


OPERATIONS = (
    Operation("create", 201, ("insert", "insert")),
    Operation("look", 200, ("find", "find")),
    Operation("read", 200, ("find", "update", "update", "delete")),
    Operation("guess", 403, ("find", "update", "find")),
    Operation("last guess", 403, ("find", "update", "find", "delete")),
    Operation("receipt", 200, ("find",)),
    Operation("burn", 200, ("update", "find", "delete")),
)
NAMES = tuple(operation.name for operation in OPERATIONS)


class Case:
    """One fault on one command of one operation on a secret of its own."""

    def __init__(self, stage: Stage[Any], operation: Operation, finding: Finding, label: str) -> None:
        self.service, self.operation, self.finding, self.label = stage.service, operation, finding, label
        self.keys = self.service.generate("the secret of the case")
        self.attempts = 10
        if operation.name == "last guess":
            for _ in range(9):
                self.service.read(self.keys["secret_key"], "a wrong guess")
            self.attempts = 1

    def act(self) -> Answer:
        """Do it."""
        match self.operation.name:
            case "create":
                body = {"secret": "another secret", "passphrase": PHRASE}
                return self.service.client.post("/generate", json=body)
            case "look":
                return self.service.look(self.keys["secret_key"])
            case "read":
                return self.service.read(self.keys["secret_key"])
            case "receipt":
                return self.service.client.get(f"/receipts/{self.keys['receipt_key']}")
            case "burn":
                return self.service.burn(self.keys["receipt_key"])
            case _:
                return self.service.read(self.keys["secret_key"], "a wrong guess")

    def expect(self, holds: bool, what: str) -> None:
        """Note a violation."""
        self.finding.expect(holds, f"{self.operation.name}, {self.label}: {what}")

    def judge(self, answer: Answer, seen: Counter[str]) -> None:
        """See that the answer is right or 503, that another try is right, and that nobody else reads it."""
        self.finding.trials += 1
        name, right = self.operation.name, self.operation.right
        seen[str(answer.status)] += 1
        self.expect(answer.status in (right, 503), f"{answer.status}")
        receipt = self.service.receipt(self.keys["receipt_key"])
        self.expect(receipt["attempts_left"] <= self.attempts, "the attempt count went up")
        winners = int(name == "read" and answer.status == 200)
        if winners:
            self.expect(answer.json() == {"secret": "the secret of the case"}, "another secret")
            self.expect(receipt["state"] == "read", f"the receipt says {receipt['state']}")
        again = self.act() if name != "read" and (name in REPEATED or answer.status == 503) else None
        if name == "last guess" and again is not None:
            state = self.service.receipt(self.keys["receipt_key"])["state"]
            self.expect((again.status, state) in ((404, "locked"), (403, "locked")), f"then {again.status}, {state}")
        elif again is not None:
            self.expect(again.status == right, f"the next try gives {again.status}")
        if name == "create":
            for created in (one.json() for one in (answer, again) if one is not None and one.status == 201):
                read = self.service.read(created["secret_key"])
                self.expect(read.json() == {"secret": "another secret"}, f"unreadable: {read.status}")
        if name == "burn" and again is not None:
            self.expect(again.json().get("state") == "burned", "not burned")
        if name.endswith("guess") and answer.status == 403:
            left = answer.json()["attempts_left"]
            self.expect(left == receipt["attempts_left"] == self.attempts - 1, f"{left} attempts left")
        waits = self.service.receipt(self.keys["receipt_key"])["state"] == "pending"
        for _ in range(2):
            winners += self.service.read(self.keys["secret_key"]).status == 200
        allowed = {1} if waits or (name == "read" and answer.status == 200) else {0}
        self.expect(winners in allowed, f"{winners} readers, of {allowed}")


def targets(names: Sequence[str]) -> Iterator[tuple[Operation, int]]:
    """Yield each command of each operation named, by its place."""
    for operation in OPERATIONS:
        for index in range(len(operation.commands) if operation.name in names else 0):
            yield operation, index


@contextlib.contextmanager
def failing(admin: Client, commands: tuple[str, ...], index: int, fault: str, span: str) -> Iterator[None]:
    """Fail one command of several, or that and all later ones of its name, for the time of a block."""
    command = commands[index]
    skip = commands[:index].count(command)
    if span == "once" and skip:
        with failing_nth(admin, command, skip, FAULTS[fault]):
            yield
        return
    failpoint(admin, [command], FAULTS[fault], skip=skip, times=1 if span == "once" else None)
    try:
        yield
    finally:
        disarm(admin)


def failpoints(
    on_set: bool = True,
    faults: Sequence[str] = tuple(FAULTS),
    operations: Sequence[str] = NAMES,
    on: Stage[Any] | None = None,
) -> Finding:
    """Try every fault on every command of every operation, once and until the answer."""
    kind = "a replica set" if on_set else "a standalone"
    finding = Finding(
        f"with a failing database ({kind}) the answer is right or 503, and nothing is read twice",
        f"failCommand ({', '.join(faults)}) on each command of each operation, {' and '.join(FOR)}",
    )
    seen: Counter[str] = Counter()
    with lent(on, staged_on(on_set)) as stage, admin_of(stage.database) as admin:
        if on is None:
            stage.add_service(stage.database.url + HEARTBEAT)
        for operation, index in targets(operations):
            for fault in faults:
                for span in FOR:
                    if fault in OF_WRITES and (operation.commands[index] not in WRITES or span == "once"):
                        continue
                    label = f"{fault} {span} at command {index + 1}, {operation.commands[index]}"
                    case = Case(stage, operation, finding, label)
                    with failing(admin, operation.commands, index, fault, span):
                        answer = case.act()
                    wait_for(stage.writable, 60)
                    case.judge(answer, seen)
    finding.note = ", ".join(f"{number} times {status}" for status, number in sorted(seen.items()))
    return finding


def stepdown() -> Finding:
    """Let the primary step down before each operation."""
    finding = Finding(
        "while the primary changes the answer is right or 503, and right again afterwards",
        "replSetStepDown before each operation",
    )
    seen: Counter[str] = Counter()
    with staged_on_set() as stage:
        for operation in OPERATIONS * 3:
            case = Case(stage, operation, finding, "stepdown")
            stage.database.step_down()
            answer = case.act()
            stage.database.wait_until_whole()
            wait_for(stage.writable, 60)
            case.judge(answer, seen)
    finding.note = ", ".join(f"{number} times {status}" for status, number in sorted(seen.items()))
    return finding


def admin_of(database: Mongod | ReplicaSet) -> Client:
    """Make a client of the member that clients write to."""
    if isinstance(database, Mongod):
        return Client(database.url)
    return database.client(database.wait_for_primary())
