"""What is measured, as processes of their own, and what they use."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.pace import Question
from tests.service import PHRASE

LUA = Path(__file__).with_name("load.lua")
# Seconds that an answer may take.
PATIENCE = 30
TICKS = 100  # of /proc's CPU times to the second, on Linux
# On the same event loop as the service.
BARE = (
    *(sys.executable, "-m", "hypercorn", "--workers", "0", "--worker-class", "uvloop", "--bind", "127.0.0.1:{port}"),
    "bench.bare:create_app()",
)
CREATE = {"secret": "a secret of the benchmark", "passphrase": PHRASE}


class Load(NamedTuple):
    """What a closed loop came to."""

    rate: float  # answers a second, while all connections were kept busy
    cpu: dict[str, float]  # ms of CPU time for each answer, by process
    answers: list[dict[str, str]]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_seconds(int(child)) for child in children)


def resident(pid: int) -> float:
    """Return what a process holds in memory, MB."""
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def creates() -> list[Question]:
    """Return a create to send over and over."""
    return [("POST", "/generate", CREATE)]


def reads(created: Iterable[dict[str, str]]) -> list[Question]:
    """Return a read for each that was created."""
    return [("POST", f"/secrets/{one['secret_key']}", {"passphrase": PHRASE}) for one in created]


def load(
    folder: Path,
    url: str,
    questions: list[Question],
    seconds: float,
    pids: dict[str, int],
    expected: int,
    connections: int,
) -> Load:
    """Send requests in a closed loop, wrk with one thread, until the time is over; wait for all of the answers.

    Raises:
        AssertionError: An answer was lost, or had another status than the one expected.

    """
    lines = "\n".join(f"{method}\t{path}\t{json.dumps(body) if body else ''}" for method, path, body in questions)
    (folder / "requests").write_text(lines + "\n")
    # The script ends it sooner than this duration.
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds + PATIENCE:.0f}s"]
    command += ["--timeout", f"{PATIENCE}s", "--script", str(LUA), url, "--"]
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    done = subprocess.run(
        [*command, str(seconds), str(folder / "requests"), str(folder / "answers")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    after = {name: cpu_seconds(pid) for name, pid in pids.items()}
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["statuses"]) == {str(expected)}, told
    number = told["requests"]
    cpu = {name: 1000 * (after[name] - before[name]) / number for name in pids}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu["load"] = 1000 * (used.ru_utime + used.ru_stime - own.ru_utime - own.ru_stime) / number
    answers = [json.loads(line) for line in (folder / "answers").read_text().splitlines() if line.strip()]
    return Load(told["in_time"] / told["seconds"], cpu, answers)
