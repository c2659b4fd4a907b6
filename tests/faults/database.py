"""Faults of the database, injected by its own failCommand, on each command of each operation.

SecantusDB fails a command before it runs it (``errorCode``, ``closeConnection``), slows it (``blockConnection``), or
runs it and adds that a majority did not confirm it (``writeConcernError``). What is cut off *after* it ran is in
network.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pymongo
from pymongo.errors import PyMongoError

from quart_ots.db import NAME
from tests.faults.finding import Finding
from tests.faults.stage import Stage, staged
from tests.service import PHRASE, wait_for

Admin = pymongo.MongoClient[dict[str, Any]]
FAULTS: dict[str, dict[str, Any]] = {
    "closed connection": {"closeConnection": True},
    "NotWritablePrimary": {"errorCode": 10107, "errorLabels": ["RetryableWriteError"]},
    "InterruptedAtShutdown": {"errorCode": 11600, "errorLabels": ["RetryableWriteError"]},
    "ExceededTimeLimit": {"errorCode": 50},
    "an error": {"errorCode": 1},
    "no majority": {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
    "0.3 s late": {"blockConnection": True, "blockTimeMS": 300},
}
# The operations that are tried again also when all went well.
AGAIN = ("create", "burn", "last guess")
# 1: the driver may retry and win. 2: its retry fails too.
TIMES = (1, 2)


class Operation(NamedTuple):
    """One call of the API, the statuses it has when all is well, and its commands in their order."""

    name: str
    right: int
    commands: tuple[str, ...]


OPERATIONS = (
    Operation("create", 201, ("insert", "insert")),
    Operation("look", 200, ("find",)),
    Operation("read", 200, ("find", "update", "update", "delete")),
    Operation("guess", 403, ("find", "update", "find")),
    Operation("last guess", 403, ("find", "update", "find", "delete")),
    Operation("receipt", 200, ("find",)),
    Operation("burn", 200, ("find", "update", "delete")),
)


class Case:
    """One fault on one command of one operation on a secret of its own."""

    def __init__(self, stage: Stage, operation: Operation, finding: Finding, label: str) -> None:
        self.service, self.operation, self.finding, self.label = stage.service, operation, finding, label
        self.keys = self.service.generate("the secret of the case")
        self.attempts = 10
        if operation.name == "last guess":
            for _ in range(9):
                self.service.read(self.keys["secret_key"], "a wrong guess")
            self.attempts = 1

    def act(self) -> httpx.Response:
        """Do it."""
        secret, receipt = f"/secrets/{self.keys['secret_key']}", f"/receipts/{self.keys['receipt_key']}"
        client = self.service.client
        match self.operation.name:
            case "create":
                return client.post("/generate", json={"secret": "another secret", "passphrase": PHRASE})
            case "look":
                return client.get(secret)
            case "read":
                return client.post(secret, json={"passphrase": PHRASE})
            case "receipt":
                return client.get(receipt)
            case "burn":
                return client.delete(receipt)
            case _:
                return client.post(secret, json={"passphrase": "a wrong guess"})

    def expect(self, holds: bool, what: str) -> None:
        """Note a violation."""
        self.finding.expect(holds, f"{self.operation.name}, {self.label}: {what}")

    def judge(self, answer: httpx.Response, seen: Counter[str]) -> None:
        """See that the answer is right or 503, that another try is right, and that nobody else reads it."""
        self.finding.trials += 1
        name, right = self.operation.name, self.operation.right
        seen[str(answer.status_code)] += 1
        self.expect(answer.status_code in (right, 503), f"{answer.status_code}")
        receipt = self.service.receipt(self.keys["receipt_key"])
        self.expect(receipt["attempts_left"] <= self.attempts, "the attempt count went up")
        winners = int(name == "read" and answer.status_code == 200)
        if winners:
            self.expect(answer.json() == {"secret": "the secret of the case"}, "another secret")
            self.expect(receipt["state"] == "read", f"the receipt says {receipt['state']}")
        again = self.act() if name != "read" and (name in AGAIN or answer.status_code == 503) else None
        if name == "read" and answer.status_code == 503:
            self.expect(
                receipt["state"] == "pending", f"nobody has the secret, and the receipt says {receipt['state']}"
            )
        if name == "last guess" and again is not None:
            state = self.service.receipt(self.keys["receipt_key"])["state"]
            self.expect(
                (again.status_code, state) in ((404, "locked"), (403, "locked")), f"then {again.status_code}, {state}"
            )
        elif again is not None:
            self.expect(again.status_code == right, f"the next try gives {again.status_code}")
        if name == "create":
            for created in (one.json() for one in (answer, again) if one is not None and one.status_code == 201):
                read = self.service.read(created["secret_key"])
                self.expect(read.json() == {"secret": "another secret"}, f"unreadable: {read.status_code}")
        if name == "burn" and again is not None:
            self.expect(again.json().get("state") == "burned", "not burned")
        if name.endswith("guess") and answer.status_code == 403:
            left = answer.json()["attempts_left"]
            self.expect(left == receipt["attempts_left"] == self.attempts - 1, f"{left} attempts left")
        waits = self.service.receipt(self.keys["receipt_key"])["state"] == "pending"
        for _ in range(2):
            winners += self.service.read(self.keys["secret_key"]).status_code == 200
        allowed = {1} if waits or (name == "read" and answer.status_code == 200) else {0}
        self.expect(winners in allowed, f"{winners} readers, of {allowed}")


def failpoint(admin: Admin, commands: list[str], skip: int, times: int, data: dict[str, Any]) -> None:
    """Arm it for the service's connections alone."""
    admin.admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"skip": skip, "times": times},
        data={"failCommands": commands, "appName": NAME, **data},
    )


def disarm(admin: Admin) -> None:
    """Switch it off."""
    admin.admin.command("configureFailPoint", "failCommand", mode="off")


def targets() -> Iterator[tuple[Operation, int]]:
    """Give each command of each operation, by its place."""
    for operation in OPERATIONS:
        for index in range(len(operation.commands)):
            yield operation, index


def failpoints(standalone: bool = False, faults: tuple[str, ...] = tuple(FAULTS)) -> Finding:
    """Try every fault on every command of every operation, once and twice in a row."""
    kind = "a standalone" if standalone else "a replica set"
    finding = Finding(
        f"with a failing database ({kind}) the answer is right or 503, and nothing is read twice",
        f"failCommand ({', '.join(faults)}) on each command of each operation",
    )
    seen: Counter[str] = Counter()
    options = ("--enable-test-commands", *(["--standalone"] if standalone else []))
    with staged(1, *options) as stage, Admin(stage.mongo.url) as admin:
        for operation, index in targets():
            for fault in faults:
                for times in TIMES:
                    case = Case(stage, operation, finding, f"{fault} {times} times at command {index + 1}")
                    failpoint(admin, ["find", "insert", "update", "delete"], index, times, FAULTS[fault])
                    answer = case.act()
                    disarm(admin)
                    stage.service.wait_until_ready()
                    case.judge(answer, seen)
    finding.note = ", ".join(f"{number} times {status}" for status, number in sorted(seen.items()))
    return finding


def stepdown() -> Finding:
    """Let the primary step down for a second before each operation."""
    finding = Finding(
        "while no primary is there the answer is right or 503, and right again thereafter",
        "replSetStepDown of 1 s before each operation",
    )
    seen: Counter[str] = Counter()
    with staged(1, "--enable-test-commands") as stage, Admin(stage.mongo.url) as admin:
        for operation in OPERATIONS * 3:
            case = Case(stage, operation, finding, "stepdown")
            try:
                admin.admin.command("replSetStepDown", 1, force=True)
            except PyMongoError:  # the command ends connections on older versions
                seen["stepdown refused"] += 1
            answer = case.act()
            wait_for(stage.writable)  # being ready is not enough: a secondary that is connected to directly reads
            case.judge(answer, seen)
    finding.expect(seen["stepdown refused"] == 0, "no stepdown")
    finding.note = ", ".join(f"{number} times {status}" for status, number in sorted(seen.items()) if number)
    return finding
