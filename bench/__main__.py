"""All of it: `make bench`. Prints what it measures, writes bench/results.json, docs/performance.md and its plots.

Some ten minutes; the machine should have nothing else to do. Sections can be named to be measured anew, by themselves:
what the file has of the others stays.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench import parts, report, sections
from bench.rates import PLAIN, Hashes, Rates, Stand, hash_all
from bench.stand import Load
from tests.mongod import program

RESULTS = Path("bench") / "results.json"
# Short ones, as the clock of a shared machine changes: what is compared should be measured close together.
ROUNDS = 4


def at_default_cost(folder: Path) -> dict[str, Any]:
    """Create and read at cost 10, in the service and in the bare app, and hash without doing anything else."""
    rounds: list[tuple[Hashes, Rates, Rates]] = []
    with Stand(folder, 10) as stand:
        for number in range(ROUNDS):
            rounds.append((hash_all(stand.cost, 1.5), *_both(stand, number, 2.5)))
    hashes = [one for one, _, _ in rounds]
    told: dict[str, Any] = {"hash_ms": median(one.cpu for one in hashes), "hashes": median(one.rate for one in hashes)}
    for kind in Rates._fields:
        told[kind] = _beside_hashes([getattr(ours, kind) for _, ours, _ in rounds], hashes)
        told[kind]["bare"] = _beside_hashes([getattr(bare, kind) for _, _, bare in rounds], hashes)
    return told


def _both(stand: Stand, number: int, seconds: float) -> tuple[Rates, Rates]:
    """Measure the service and the bare app; in every other round the bare app first."""
    if number % 2:
        theirs, ours = stand.rates(stand.bare, seconds), stand.rates(stand.service, seconds)
    else:
        ours, theirs = stand.rates(stand.service, seconds), stand.rates(stand.bare, seconds)
    return ours, theirs


def _beside_hashes(loads: list[Load], hashes: list[Hashes]) -> dict[str, Any]:
    """Compare loads with hashing alone, each with that of its round."""
    pairs, cores = list(zip(loads, hashes, strict=True)), os.cpu_count() or 1
    # What is left of the cores after the load generator and the database.
    left = [1 - load.rate * (load.cpu["database"] + load.cpu["load"]) / 1000 / cores for load in loads]
    return {
        **_figures(loads),
        "cpu_ratio": median(load.cpu["service"] / one.cpu for load, one in pairs),
        "rate_ratio": median(load.rate / (one.rate * share) for (load, one), share in zip(pairs, left, strict=True)),
    }


def at_lowest_cost(folder: Path) -> dict[str, Any]:
    """Create and read at cost 4, in the service and in the bare app; and where the time goes."""
    service: list[Rates] = []
    bare: list[Rates] = []
    plain: list[dict[str, Load]] = []
    with Stand(folder, 4) as stand:
        hashes = hash_all(stand.cost, 2)
        for number in range(ROUNDS):
            ours, theirs = _both(stand, number, 2)
            service.append(ours)
            bare.append(theirs)
            plain.append(stand.plain(0.7))
        samples = {
            name: parts.sampled(stand, one, 4) for name, one in (("service", stand.service), ("bare", stand.bare))
        }
    told: dict[str, Any] = {"hash_ms": hashes.cpu, "parts": {}}
    told["plain"] = {name: _figures([one[name] for one in plain]) for name in PLAIN}
    for kind in Rates._fields:
        loads = {
            name: [getattr(rates, kind) for rates in rounds] for name, rounds in (("service", service), ("bare", bare))
        }
        pairs = list(zip(loads["service"], loads["bare"], strict=True))
        ratio = median(one.rate / other.rate for one, other in pairs)
        beyond = median(one.cpu["service"] - other.cpu["service"] for one, other in pairs)
        told[kind] = {**{name: _figures(own) for name, own in loads.items()}, "ratio": ratio, "beyond_ms": beyond}
        told["parts"][kind] = {
            name: parts.spread(told[kind][name]["service_ms"] - hashes.cpu, samples[name][kind]) for name in samples
        }
    return told


def _figures(loads: list[Load]) -> dict[str, float]:
    """Return the medians of what the same load came to in each round."""
    columns = {
        "rate": [load.rate for load in loads],
        "service_ms": [load.cpu["service"] for load in loads],
        "database_ms": [load.cpu["database"] for load in loads],
    }
    return {name: median(values) for name, values in columns.items()}


def _database() -> str:
    """Name the database, by what it says of its version: "db version v6.0.5"."""
    told = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    return f"mongod {told.split()[2].removeprefix('v')}, a standalone"


SECTIONS: dict[str, Callable[[Path], Any]] = {
    "default_cost": at_default_cost,
    "lowest_cost": at_lowest_cost,
    "under_load": sections.under_load,
    "at_length": sections.at_length,
    "start": lambda _: sections.start(),
    "costs": sections.costs,
    "stored": lambda _: sections.stored(),
}


def main(names: list[str]) -> None:
    """Run the sections named, or all and write the report."""
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    if unknown := [name for name in names if name not in SECTIONS]:
        sys.exit(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if names else {"seconds": {}}
    results["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "database": _database(),
    }
    for name in names or SECTIONS:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = SECTIONS[name](Path(folder))
        results["seconds"][name] = round(time.monotonic() - begun)
        print(f"{name}, {results['seconds'][name]} s: {json.dumps(results[name], indent=2)}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if set(SECTIONS) <= set(results):
        report.write(results)
        print(report.goals(results))


if __name__ == "__main__":
    main(sys.argv[1:])
