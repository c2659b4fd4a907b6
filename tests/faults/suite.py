"""All attacks, and docs/reliability.md, which reports what they found."""

from __future__ import annotations

import asyncio
import inspect
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.faults import (
    clients,
    crashes,
    database,
    deadline,
    failover,
    inputs,
    limiter,
    model,
    network,
    races,
    soak,
    stops,
    ttl,
)
from tests.faults.finding import HEAD, Finding
from tests.mongod import program

REPORT = Path("docs") / "reliability.md"
PLOT = Path("docs") / "soak.png"
FRAME = """# Reliability

What the service promises, how `make faults` attacked each promise, and what was found. That command writes this
page. The code of the attacks is in `tests/faults/`; a small part of each runs in `make test`, with fixed seeds. A
violation is a broken promise, and would be a bug.

{where}

{table}

## The one window

A secret can be lost in one way: the service crashes, or the way to the client breaks, after a reader's claim is in the
database and before the answer has arrived. (A claim is the update that makes one reader the only one.) The claim must
come first, or two readers could be served, and no server can know whether an answer arrived. The rows on crashes count
how often a reading in flight ended there. The creator can see it: the receipt says `read`, and the reader has nothing.
Three things do not open this window: a connection to the *database* that breaks there, as the claim's own id tells
whose it was; a stop of the service; and a client that hangs up before the claim.

## What a failover is like

While a replica set has no primary, requests wait or are told 503; nothing that was acknowledged is lost. Receipts and
looks are read at `majority`, as a primary that is cut off from the others still sees writes that are rolled back later.
How long it takes is mostly MongoDB's own time. The members here elect after 2 s (`electionTimeoutMillis`; MongoDB's
default is 10 s). After a member has frozen, another one may wait for it for some seconds more before a majority can
write again.

## What this does not show

The database is a real mongod, but all its members run on one machine and share its disk. A loss of power, disks that
lie about what they have written, and clocks that jump were not tried. Nor was a sharded cluster: no real mongos was at
hand. failCommand fails a command before it runs, but for the missing majority, which is reported after it ran; what
is cut off after it ran is the proxy's part. Clients, services and databases share the cores with other attacks, so
that latencies tell little.

Supply chain: `make lint` runs bandit, which finds nothing. `make audit` asks pip-audit for known vulnerabilities of
what requirements.txt pins; its data could not be reached where this was measured.

![RSS, threads, descriptors and database connections over ten minutes](soak.png)
"""

# By name, so that some can be asked for: python -m tests.faults readers burners
ATTACKS: dict[str, Callable[[], Any]] = {
    "model": partial(model.model, 1000, 1, processes=1),
    "readers": races.readers,
    "burners": races.burners,
    "expiry": races.expiry,
    "reaper": ttl.reaper,
    "tenth-guess": races.tenth_guess,
    "last-attempt": races.last_attempt,
    "creators": races.creators,
    "stop-serve": partial(stops.stop, "serve"),
    "stop-hypercorn": partial(stops.stop, "hypercorn"),
    "stop-hypercorn-alone": partial(stops.stop, "hypercorn --workers 0"),
    "hang-up": stops.hang_up,
    "limited": stops.limited,
    "crash-service": crashes.of_the_service,
    "crash-window": crashes.window,
    "crash-database": crashes.of_the_database,
    "crash-set": crashes.of_the_set,
    "failover-kill": partial(failover.failover, "kill"),
    "failover-freeze": partial(failover.failover, "freeze"),
    "failover-step-down": partial(failover.failover, "step down"),
    "failover-partition": partial(failover.failover, "partition"),
    "lone-primary": failover.lone_primary,
    "failpoints": database.failpoints,
    "failpoints-standalone": partial(database.failpoints, on_set=False),
    "stepdown": database.stepdown,
    "network": network.network,
    "network-standalone": partial(network.network, on_set=False),
    "deadline-frozen": partial(deadline.deadline, "SIGSTOP"),
    "deadline-listener": partial(deadline.deadline, "a listener in its place"),
    "deadline-midst": deadline.in_the_midst,
    "slow-clients": clients.slow,
    "aborted": clients.aborted,
    "openapi": inputs.openapi,
    "fuzz-envelope": partial(inputs.parser, "envelope"),
    "fuzz-address": partial(inputs.parser, "address"),
    "limiter-memory": limiter.memory,
    "limiter-network": limiter.one_network,
    "soak": partial(soak.soak, plot=PLOT),
}
# Attacks at once: more than the cores, as many wait for most of their time.
LANES = 3
# Begun first, the longest first, so that none of them is alone in the end.
LONG = (
    *("soak", "model", "crash-set", "failover-freeze", "failover-partition", "failover-kill", "lone-primary"),
    *("openapi", "limiter-memory", "crash-database", "failpoints", "failover-step-down", "creators"),
    *("failpoints-standalone", "limited", "stop-serve", "stop-hypercorn", "stop-hypercorn-alone", "readers"),
)


def play(name: str) -> Finding:
    """Run one attack, in a process of its own."""
    started = time.monotonic()
    try:
        result: Any = ATTACKS[name]()
        finding: Finding = asyncio.run(result) if inspect.iscoroutine(result) else result
    except Exception as error:
        # Such as a leak in a log, which ends an attack. Its trials are not known then.
        traceback.print_exc()
        finding = Finding(name, "ended early", violations=[f"{type(error).__name__}, see what was printed"])
    lines = [
        f"{name}: {finding.trials:,} trials, {len(finding.violations)} violations, {time.monotonic() - started:.0f} s"
    ]
    sys.stdout.write("\n  ".join([*lines, finding.note, *finding.violations[:20]]) + "\n")
    sys.stdout.flush()
    return finding


def main(names: list[str]) -> int:
    """Run the attacks named, or all and write the report; return the exit status, 1 where a promise broke."""
    if unknown := [name for name in names if name not in ATTACKS]:
        sys.exit(f"no such attack: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    started = time.monotonic()
    chosen = [name for name in ATTACKS if not names or name in names]
    begun = sorted(chosen, key=lambda name: LONG.index(name) if name in LONG else len(LONG))
    with ProcessPoolExecutor(LANES, get_context("spawn"), max_tasks_per_child=1) as pool:
        played = dict(zip(begun, pool.map(play, begun), strict=True))
    findings = [played[name] for name in chosen]
    minutes = (time.monotonic() - started) / 60
    rows = "\n".join(finding.row() for finding in findings)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    where = (
        f"Measured in {minutes:.0f} minutes on {machine}. The database is mongod {version()}: a standalone, or "
        "a replica set of three members with authentication, each a process on the same machine."
    )
    sys.stdout.write(f"{HEAD}\n{rows}\n\n{where}\n")
    if not names:
        REPORT.write_text(FRAME.format(where=where, table=f"{HEAD}\n{rows}"))
    return int(any(finding.violations for finding in findings))


def version() -> str:
    """Return the version of the suite's mongod."""
    said = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2].removeprefix("v")
