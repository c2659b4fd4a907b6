"""docs/performance.md's measured part, and its plots, from the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.parts import PARTS

PAGE = Path("docs") / "performance.md"
BEGIN, END = "<!-- measured: from here on written by `make bench` -->", "<!-- end of what is measured -->"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; floats to three digits."""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _goal(figure: str, measured: str, against: str, value: float, goal: str, met: bool) -> tuple[object, ...]:
    return figure, measured, against, value, goal, "yes" if met else "no"


def goals(results: dict[str, Any]) -> str:
    """Return the table of what the service is to reach."""
    default, lowest, rows = results["default_cost"], results["lowest_cost"], []
    for kind in ("create", "read"):
        one = default[kind]
        hashes = f"{default['hashes']:.1f} hashes/s, {default['hash_ms']:.1f} ms"
        rate = f"{one['rate']:.1f}/s, {one['service_ms']:.1f} ms of CPU"
        rows.append(_goal(f"{kind}, cost 10: CPU", rate, hashes, one["cpu_ratio"], "≤ 1.05", one["cpu_ratio"] <= 1.05))
        ratio = one["rate_ratio"]
        rows.append(
            _goal(f"{kind}, cost 10: rate", rate, f"{hashes}, less load and database", ratio, "≥ 0.95", ratio >= 0.95)
        )
    for kind in ("create", "read"):
        one = lowest[kind]
        ours, bare = (
            f"{one[name]['rate']:.0f}/s, {one[name]['service_ms']:.2f} ms of CPU" for name in ("service", "bare")
        )
        rows.append(
            _goal(f"{kind}, cost 4: rate", ours, f"bare app {bare}", one["ratio"], "≥ 0.8", one["ratio"] >= 0.8)
        )
        beyond = one["beyond_ms"]
        rows.append(_goal(f"{kind}: own CPU, ms", ours, "bare app: hash, driver, route", beyond, "< 0.5", beyond < 0.5))
    for name, one in results["under_load"].items():
        ratio = one["ratio"]
        times = f"p99 {one['full_p99']:.1f} ms, pool full", f"{one['idle_p99']:.1f} ms idle"
        rows.append(
            _goal({"live": "/health/live", "status": "look at a secret"}[name], *times, ratio, "≤ 3", ratio <= 3)
        )
    few, *more = results["at_length"]["waiting"]
    for one in more:
        ratio = one["ratio"]
        text = f"p50 {one['p50']:.1f} ms", f"{few['p50']:.1f} ms"
        rows.append(_goal(f"read beside {one['waiting']:,} that wait", *text, ratio, "≤ 1.2", ratio <= 1.2))
    one = results["at_length"]["memory"]
    ratio = one["last_mb"] / one["first_mb"]
    told = (
        f"{one['last_mb']:.0f} MB after {one['last_requests']:,}",
        f"{one['first_mb']:.0f} MB after {one['first_requests']:,}",
    )
    rows.append(_goal("RSS, most requests being looks at no key", *told, ratio, "≤ 1.1", ratio <= 1.1))
    one = results["start"]
    ratio = one["ratio"]
    rows.append(
        _goal(
            "start to first answer",
            f"{one['start']:.2f} s",
            f"{one['imports']:.2f} s of imports",
            ratio,
            "≤ 1.3",
            ratio <= 1.3,
        )
    )
    return table(("figure", "measured", "compared with", "ratio or value", "goal", "met"), rows)


def measured(results: dict[str, Any]) -> str:
    """Return all that was measured, as the page has it."""
    machine, default, lowest = results["machine"], results["default_cost"], results["lowest_cost"]
    plain, waiting = lowest["plain"], results["at_length"]["waiting"]
    kinds = [(kind, name) for kind in ("create", "read") for name in ("service", "bare")]
    split = [[part, *(lowest["parts"][kind][name][part] for kind, name in kinds)] for part in PARTS]
    names = {"unvalidated": "not validated", "plain": "models of pydantic's", "dataclasses": "dataclasses"}
    return "\n\n".join(
        (
            f"Measured in {sum(results['seconds'].values()) / 60:.0f} minutes on {machine['cores']} cores, Python "
            f"{machine['python']}; the database is {machine['database']}. "
            "Service, database and load generator share the machine.",
            goals(results),
            "At cost 10 the bare app itself, which has nothing of this service, uses "
            f"{default['create']['bare']['cpu_ratio']:.3f} of a hash's CPU time for a create and "
            f"{default['read']['bare']['cpu_ratio']:.3f} for a read, and reaches "
            f"{default['create']['bare']['rate_ratio']:.3f} and {default['read']['bare']['rate_ratio']:.3f} of the "
            "limit that is left.",
            "![Rates beside their limits](performance-rates.png)",
            "### CPU time by part\n\nOf a request at cost 4, less the hash, ms.",
            table(("part", *(f"{kind}, {name}" for kind, name in kinds)), split),
            "![CPU time by part](performance-parts.png)",
            "### quart-schema\n\nThe bare app's JSON POST, by how it takes its body. A model is built once; of a "
            "dataclass, quart-schema has pydantic build a validator at each request, twice, which is what it costs.",
            table(
                ("body", "requests/s", "CPU, ms"),
                ((names[key], plain[key]["rate"], plain[key]["service_ms"]) for key in names),
            ),
            "### Secrets that wait",
            table(("waiting", "read, p50, ms"), ((one["waiting"], one["p50"]) for one in waiting)),
            "![Read latency by secrets that wait](performance-waiting.png)",
            "### What it costs an operator",
            table(
                ("QUART_OTS_BCRYPT_COST", "one hash, ms", "creates/s and core", "reads/s and core"),
                ((one["cost"], one["hash_ms"], one["creates"], one["reads"]) for one in results["costs"]),
            ),
            f"A secret of up to 254 bytes takes {results['stored']['envelope']} bytes of BSON for its envelope "
            f"until it has ended, and {results['stored']['secret']} for its receipt "
            "until that expires; each further 255 bytes take 255. Indexes come on top.",
        )
    )


def plot(results: dict[str, Any]) -> None:
    """Draw the plots."""
    from matplotlib.figure import Figure  # only for this

    lowest, default = results["lowest_cost"], results["default_cost"]
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(
        ["hashes", "creates", "reads"],
        [default["hashes"], default["create"]["rate"], default["read"]["rate"]],
        color=["grey", "C0", "C0"],
    )
    left.set(title="cost 10", ylabel="a second")
    names = ["create", "read"]
    for offset, name, colour in ((-0.2, "bare", "grey"), (0.2, "service", "C0")):
        places = [index + offset for index in range(len(names))]
        right.bar(places, [lowest[kind][name]["rate"] for kind in names], 0.4, label=name, color=colour)
    right.set(title="cost 4", xticks=range(len(names)), xticklabels=names)
    right.legend()
    figure.savefig(PAGE.with_name("performance-rates.png"), dpi=100)

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bars = [(kind, name) for kind in names for name in ("bare", "service")]
    labels = [f"{kind}, {name}" for kind, name in bars]
    below = [0.0] * len(bars)
    for part in PARTS:
        values = [lowest["parts"][kind][name][part] for kind, name in bars]
        axes.barh(labels, values, left=below, label=part)
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set(xlabel="ms of CPU time a request, less the hash")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(PAGE.with_name("performance-parts.png"), dpi=100)

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    waiting = results["at_length"]["waiting"]
    times = [one["p50"] for one in waiting]
    axes.plot([one["waiting"] for one in waiting], times, "o-")
    axes.set(xscale="log", xlabel="secrets that wait", ylabel="read, p50, ms", ylim=(0, 1.2 * max(times)))
    figure.savefig(PAGE.with_name("performance-waiting.png"), dpi=100)


def write(results: dict[str, Any]) -> None:
    """Put what was measured in its place on the page, and draw the plots."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured(results)}\n\n{END}{after}")
    plot(results)
