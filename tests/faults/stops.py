"""Stops, hang-ups and starts: nobody's reading loses the secret, and a start that cannot serve does not happen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from quart_ots.ops.serve import GRACE
from tests.client import LOST
from tests.faults.api import connected
from tests.faults.finding import Finding, median_and_worst
from tests.faults.stage import Stage, lent, staged
from tests.mongod import Client, Mongod, disarm, failpoint, wait_for
from tests.service import EVERY, HYPERCORN, HYPERCORN_ALONE, PHRASE, SERVE, Service

SERVERS = {"serve": SERVE, "hypercorn": HYPERCORN, "hypercorn --workers 0": HYPERCORN_ALONE}
# Seconds beyond the grace that a stop may take: the hashes that have begun, the parent's look at its workers, the
# interpreter's end.
BEYOND = 5
# A request's log line that tells of no answer.
NO_ANSWER = '"status": "-"'
REFUSAL = re.compile("quart_ots: the system refuses threads: .*\n")
# A user without any process, for a limit on them: root has none.
USER = "47123"


async def stop(server: str, rounds: int = 3, crowd: int = 60, cost: int = 12, seed: int = 1) -> Finding:
    """Stop the service while more readers wait than its grace suffices for, and look at their secrets afterwards."""
    finding = Finding(
        f"a stop loses no secret (`{server}`)",
        f"SIGTERM while {crowd} secrets are read at bcrypt cost {cost}, one reader each; a trial is a reader",
    )
    seen: Counter[str] = Counter()
    seconds: list[float] = []
    chance = random.Random(seed)
    with staged(command=SERVERS[server], BCRYPT_COST=str(cost)) as stage:
        for _ in range(rounds):
            async with connected(stage.service, seconds=120) as api:
                created = [one.body for one in await asyncio.gather(*(api.generate("s") for _ in range(crowd)))]
                reading = [asyncio.create_task(api.read(keys["secret_key"])) for keys in created]
                await asyncio.sleep(chance.uniform(0.3, 1.5))
                begun = time.monotonic()
                status = await asyncio.to_thread(stage.service.stop)
                seconds.append(time.monotonic() - begun)
                answers = await asyncio.gather(*reading)
                await asyncio.to_thread(stage.service.start)
                finding.expect(status == 0, f"exit status {status}")
                for keys, answer in zip(created, answers, strict=True):
                    state = (await api.receipt(keys["receipt_key"])).body["state"]
                    seen[str(answer.status or "no answer")] += 1
                    seen["lost"] += answer.status != 200 and state == "read"
                    finding.expect(answer.status in (200, 503), f"a reader was answered {answer.status}")
                    right = "read" if answer.status == 200 else "pending"
                    finding.expect(state == right, f"{answer.status}, and the receipt says {state}")
                left = [keys for keys, answer in zip(created, answers, strict=True) if answer.status != 200][:2]
                again = await asyncio.gather(*(api.read(keys["secret_key"]) for keys in left))
                finding.expect(all(answer.status == 200 for answer in again), "a secret that waits cannot be read")
        finding.expect("Traceback" not in stage.service.logged(), "a traceback in the log")
        finding.expect("unexpected" not in stage.service.logged(), "an unexpected exception in the log")
    finding.expect(max(seconds) <= GRACE + BEYOND, f"a stop took {max(seconds):.1f} s")
    finding.trials = rounds * crowd
    finding.note = (
        f"{seen['200']} answered with the secret, {seen['503']} told 503, {seen['no answer']} without an answer, "
        f"{seen['lost']} secrets lost; a stop took {median_and_worst(seconds)}"
    )
    return finding


def hang_up(rounds: int = 50, seed: int = 1, on: Stage[Mongod] | None = None) -> Finding:
    """Hang up while a claim that the database refuses is tried again, and let the database take it then."""
    finding = Finding(
        "nothing is claimed for a client that is gone",
        "failCommand on a reader's claim; the reader hangs up while it is tried again, then the failpoint is disarmed",
        rounds,
    )
    chance = random.Random(seed)
    retried = 0
    with lent(on, staged()) as stage, Client(stage.database.url) as admin:
        for _ in range(rounds):
            keys = stage.service.generate("a secret to hang up on")
            before = len(stage.service.logged())
            # The first update takes the attempt, the next is the claim.
            failpoint(admin, ["update"], {"errorCode": 50}, skip=1)
            with begin_to_read(stage.service, keys["secret_key"]):
                wait_for(lambda: "in doubt" in stage.service.logged()[before:])  # noqa: B023  # called at once
                time.sleep(chance.uniform(0, 0.9))
            wait_for(lambda: NO_ANSWER in stage.service.logged()[before:])  # noqa: B023
            retried += stage.service.logged()[before:].count("in doubt")
            disarm(admin)
            time.sleep(1)  # two more tries
            state = stage.service.receipt(keys["receipt_key"])["state"]
            finding.expect(state == "pending", f"the receipt says {state}")
            read = stage.service.read(keys["secret_key"])
            finding.expect(read.status == 200, f"the next reader is told {read.status}")
    finding.note = f"{retried} failed tries before the client had gone"
    return finding


def begin_to_read(service: Service, secret_key: str) -> socket.socket:
    """Send a reading, and return its connection."""
    body = f'{{"passphrase": "{PHRASE}"}}'.encode()
    head = f"POST /secrets/{secret_key} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", service.port))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


async def limited(
    limits: Sequence[int] = range(1, 41), together: int = 200, on: Stage[Mongod] | None = None
) -> Finding:
    """Start the service under each limit of processes: it ends with a line, or serves all that come at once."""
    finding = Finding(
        "a start under a limit of processes fails with a line, or the service has all threads that it needs",
        f"RLIMIT_NPROC of {limits[0]} to {limits[-1]}; {together} creates and reads at once where it starts",
        len(limits),
    )
    served = 0
    with lent(on, staged(0)) as stage:
        for limit in limits:
            folder = stage.folder / f"limit-{limit}"
            folder.mkdir()
            settings = {"MONGODB_URL": stage.database.url, "KDF_QUEUE": "1000"}
            service = Service(folder, settings, (*limiting(limit), *SERVE), wait=False)
            EVERY.remove(service)  # its log goes with the folder
            try:
                if not await asyncio.to_thread(starts, service):
                    line = service.logged()
                    finding.expect(service.process.returncode == 1, f"exit status {service.process.returncode}")
                    finding.expect(bool(REFUSAL.fullmatch(line)), f"with {limit} it says: {line[:300]}")
                    continue
                served += 1
                async with connected(service) as api:
                    created = await asyncio.gather(*(api.generate("s") for _ in range(together)))
                    reads = await asyncio.gather(*(api.read(one.body.get("secret_key", "")) for one in created))
                statuses = {one.status for one in created} | {one.status for one in reads}
                finding.expect(statuses == {200, 201}, f"with {limit} it starts, and answers {statuses}")
                finding.expect("unexpected" not in service.logged(), f"with {limit}: an unexpected exception")
            finally:
                service.stop()
    finding.expect(0 < served < len(limits), f"{served} of {len(limits)} starts served")
    finding.note = f"{len(limits) - served} starts refused, {served} served"
    return finding


def limiting(processes: int) -> list[str]:
    """Return the beginning of a command that is allowed so many processes and threads beyond those of its user."""
    user = os.getuid()
    if user:
        return ["prlimit", f"--nproc={processes + threads_of(user)}"]
    # Root has no limit. This user has no other process; the files here stay readable to it.
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return [*become, "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "prlimit", f"--nproc={processes}"]


def threads_of(user: int) -> int:
    """Count a user's threads, of which each counts as a process."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == user:
                count += len(list((folder / "task").iterdir()))
    return count


def starts(service: Service) -> bool:
    """Wait until a service is ready, and return True; or until it has ended, and return False."""
    while service.process.poll() is None:
        with contextlib.suppress(*LOST):
            if service.client.get("/health/ready", seconds=10).status == 200:
                return True
        time.sleep(0.05)
    return False
