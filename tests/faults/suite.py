"""All attacks, and docs/reliability.md, which tells what they found."""

from __future__ import annotations

import asyncio
import inspect
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.faults import clients, crashes, database, inputs, limiter, model, network, races, soak
from tests.faults.finding import HEAD, Finding
from tests.faults.stage import QUICK
from tests.service import RUST

REPORT = Path("docs") / "reliability.md"
PLOT = Path("docs") / "soak.png"
FRAME = """# Reliability

What the service promises, how `make faults` attacked it, and what came of that. This page is written by that
command: the code of each attack is in `tests/faults/`, a small part of it with fixed seeds runs in `make
test`. A violation is a broken promise, and would be a bug.

{where}

{table}

## The one window

A secret can be lost in one way without anybody's will: the service, or the way to the client, fails after a
reader's claim is in the database and before the answer has arrived. The claim must come first, or two readers
could be served; and whether an answer arrived can't be known. The rows on crashes count how often a read in
flight ended there. The creator sees it: the receipt says `read`, and the reader says otherwise. A connection
to the *database* that breaks there loses nothing: the claim's own id tells whose it was.

## What this does not show

SecantusDB stands for MongoDB: real mongod, elections among several machines and their loss of power were not
tried. A failing command fails there before it runs, but for the missing majority, which is told of after it; what
is cut off after it ran is the proxy's part. Clients, service and database share the cores with other attacks, so that
latencies tell little.

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
    "tenth-guess": races.tenth_guess,
    "creators": races.creators,
    "crash-service": crashes.of_the_service,
    "crash-database": crashes.of_the_database,
    "crash-window": crashes.window,
    "failpoints": database.failpoints,
    "failpoints-standalone": partial(database.failpoints, standalone=True),
    "stepdown": database.stepdown,
    "network": network.network,
    "network-standalone": partial(network.network, standalone=True),
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
LONG = ("soak", "model", "openapi", "limiter-memory", "crash-database", "creators", "failpoints", "readers")


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
    """Run the attacks named, or all and write the report; give the exit status, 1 where a promise broke."""
    if unknown := [name for name in names if name not in ATTACKS]:
        sys.exit(f"no such attack: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    started = time.monotonic()
    os.environ[QUICK] = "1"
    chosen = [name for name in ATTACKS if not names or name in names]
    begun = sorted(chosen, key=lambda name: LONG.index(name) if name in LONG else len(LONG))
    with ProcessPoolExecutor(LANES, get_context("spawn"), max_tasks_per_child=1) as pool:
        played = dict(zip(begun, pool.map(play, begun), strict=True))
    findings = [played[name] for name in chosen]
    minutes = (time.monotonic() - started) / 60
    rows = "\n".join(finding.row() for finding in findings)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    quick = "Rust" if Path(RUST).exists() else "Python"
    where = (
        f"Measured in {minutes:.0f} minutes on {machine}. The database is SecantusDB: its Python server for what "
        f"crashes it, makes it fail or cuts it off, its {quick} server for all else."
    )
    sys.stdout.write(f"{HEAD}\n{rows}\n\n{where}\n")
    if not names:
        REPORT.write_text(FRAME.format(where=where, table=f"{HEAD}\n{rows}"))
    return int(any(finding.violations for finding in findings))
