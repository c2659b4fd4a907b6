"""Full load for minutes: nothing grows once the service is warm."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.faults.api import Api, connected
from tests.faults.clients import MEGABYTE, SPARE, usage_of
from tests.faults.finding import Finding
from tests.faults.stage import Stage, lent, staged
from tests.mongod import Mongod

CLIENTS = 32


class Sample(NamedTuple):
    """What the service's process held at a moment."""

    seconds: float
    resident: float  # MB
    threads: float
    descriptors: float
    connections: float  # to the database


def sample(stage: Stage[Mongod], since: float) -> Sample:
    """Look."""
    usage = usage_of(stage.service)
    remote = f":{stage.database.port:04X}"
    lines = Path(f"/proc/{stage.service.process.pid}/net/tcp").read_text().splitlines()[1:]
    connections = sum(line.split()[2].endswith(remote) and line.split()[3] == "01" for line in lines)
    return Sample(time.monotonic() - since, usage.resident / MEGABYTE, usage.threads, usage.descriptors, connections)


async def soak(seconds: float = 600, plot: Path | None = None, on: Stage[Mongod] | None = None) -> Finding:
    """Keep the service busy, and compare what it holds at the end with what it held when warm."""
    finding = Finding(
        "no growth under full load",
        f"{CLIENTS} clients that create, look, guess, read, ask for receipts, {seconds:.0f} s; a trial is a request",
    )
    statuses: Counter[int] = Counter()
    samples = []
    with lent(on, staged()) as stage:
        async with connected(stage.service) as api:
            started = time.monotonic()
            work = [asyncio.create_task(live_on(api, started + seconds, statuses)) for _ in range(CLIENTS)]
            while time.monotonic() < started + seconds:
                samples.append(sample(stage, started))
                await asyncio.sleep(seconds / 120)
            await asyncio.gather(*work)
    finding.trials = statuses.total()
    odd = set(statuses) - {200, 201, 403, 404}
    finding.expect(not odd, f"statuses {odd}")
    warm, end = samples[len(samples) // 4 : len(samples) // 2], samples[-len(samples) // 4 :]
    held = []
    for name, more in (("resident", 10), ("threads", 1), ("descriptors", SPARE), ("connections", SPARE)):
        before, after = (statistics.median(getattr(one, name) for one in part) for part in (warm, end))
        finding.expect(after <= before + more, f"{name} grew from {before:.0f} to {after:.0f}")
        held.append(f"{name} {before:.0f} and {after:.0f}{' MB' if name == 'resident' else ''}")
    finding.note = f"medians of the second and the last quarter: {', '.join(held)}"
    if plot is not None:
        draw(samples, plot)
    return finding


async def live_on(api: Api, until: float, statuses: Counter[int]) -> None:
    """Be one client."""
    while time.monotonic() < until:
        created = await api.generate("a secret of the soak " + "x" * 1000)
        key, receipt = created.body.get("secret_key", "none"), created.body.get("receipt_key", "none")
        answers = [created, await api.look(key), await api.read(key, "a wrong guess"), await api.read(key)]
        answers += [await api.read(key), await api.receipt(receipt)]
        statuses.update(answer.status for answer in answers)


def draw(samples: list[Sample], path: Path) -> None:
    """Plot what was held over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    minutes = [one.seconds / 60 for one in samples]
    axes[0].plot(minutes, [one.resident for one in samples])
    axes[0].set(ylabel="RSS, MB", ylim=(0, None), title="One service process under full load")
    for name in ("threads", "descriptors", "connections"):
        label = "database connections" if name == "connections" else name
        axes[1].plot(minutes, [getattr(one, name) for one in samples], label=label)
    axes[1].set(xlabel="minutes", ylim=(0, None))
    axes[1].legend()
    figure.savefig(path, dpi=80)
