"""Where the CPU time of a request goes, by part: py-spy's samples of who holds the GIL, also in the bare app."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from bench.pace import Question
from bench.rates import Stand
from bench.stand import creates, reads
from tests.service import Service

# All below one of their frames is theirs; the first that fits has it.
SINKS = {
    "metrics": r"prometheus_client/",
    "limiter": r"quart_rate_limiter/|quart_ots/edge/(limits|clients)\.py",
    "log": r"/logging/|structlog/|\b_log \(",
    "crypto": r"quart_ots/vault/(crypto|pool)\.py",
    "driver": r"/motor/|/pymongo/|/bson/|/beanie/",
    "codec": r"/json/|\bparse_json \(",
}
# The rest, by the innermost frame that is one of theirs.
LAYERS = {
    "server": r"hypercorn/|/h11/",
    "routing": r"site-packages/quart/|werkzeug/|/flask/",
    "validation": r"quart_schema/|/pydantic/|quart_ots/api/bodies\.py",
    "handlers": r"quart_ots/|bench/bare\.py",
}
# Event loop and threads, which are nobody's.
OTHER = "loop"
PARTS = (*SINKS, *LAYERS, OTHER)


def part_of(stack: str) -> str:
    """Name the part that a stack belongs to: frames apart by semicolons, the outermost first."""
    for part, pattern in SINKS.items():
        if re.search(pattern, stack):
            return part
    for frame in reversed(stack.split(";")):
        if "hypercorn/asyncio/run.py" in frame or "hypercorn/run.py" in frame:
            return OTHER  # they only run the loop
        for part, pattern in LAYERS.items():
            if re.search(pattern, frame):
                return part
    return OTHER


def sample(stand: Stand, service: Service, questions: list[Question], seconds: float, expected: int) -> Counter[str]:
    """Put a service under load, and give the samples that each part has."""
    raw = stand.folder / "samples"
    raw.unlink(missing_ok=True)
    spy = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(service.process.pid)),
            *("--gil", "--rate", "500", "--format", "raw", "--full-filenames"),
            *("--duration", f"{seconds:.0f}", "--output", str(raw)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    stand.send(service, questions, seconds - 1, expected)
    assert spy.wait() == 0
    parts: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, number = line.rpartition(" ")
        parts[part_of(stack)] += int(number)
    return parts


def spread(cpu: float, parts: Counter[str]) -> dict[str, float]:
    """Spread a request's CPU time over its parts as their samples are, the kernel's and what waiting costs with it.

    Args:
        cpu: Of one request, less the hash's, ms.
        parts: The samples of each.

    """
    return {part: cpu * parts[part] / parts.total() for part in PARTS}


def sampled(stand: Stand, service: Service, seconds: float) -> dict[str, Counter[str]]:
    """Return the samples of a service's creates and reads."""
    created = stand.send(service, creates(), seconds, 201).answers
    return {
        "create": sample(stand, service, creates(), seconds, 201),
        "read": sample(stand, service, reads(created), seconds, 200),
    }
