"""Inputs at random: what openapi.json says of the API is so, and the parsers raise what they document and no more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.finding import Finding
from tests.faults.stage import Stage, lent, staged
from tests.mongod import Mongod
from tests.service import ROOT

SCHEMATHESIS = ROOT / "tests" / "faults" / "schemathesis.toml"
# What each promises, and what the inputs are that get beyond the first checks.
PARSERS = {
    "envelope": (
        "crypto.open raises only what it documents, and opens nothing that was changed",
        "had their key stretched (cost 4)",
    ),
    "address": (
        "the X-Forwarded-For parser never fails, and believes no entry beyond the trusted proxies'",
        "had an entry that was believed",
    ),
}


def openapi(cases: int = 20_000, seed: int = 1, on: Stage[Mongod] | None = None) -> Finding:
    """Let schemathesis play with the service, with all its checks."""
    finding = Finding(
        "the API does what openapi.json says, whatever comes", "schemathesis with all its checks; a trial is a case"
    )
    with lent(on, staged()) as stage:
        # Drawn per operation and phase, so ask for more at a time until there were enough.
        examples = max(1, cases // 14)
        for round_ in range(10):
            command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(SCHEMATHESIS)]
            command += ["run", f"{stage.service.url}/openapi.json"]
            options = ["--checks", "all", "--max-examples", str(examples), "--seed", str(seed + round_), "--no-color"]
            options += ["--suppress-health-check", "all", "--generation-database", "none", "--workers", "2"]
            hooks = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.faults.hooks"}
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, cwd=stage.folder, env=hooks, check=False
            )
            played = re.search(r"([0-9,]+) generated", done.stdout)
            failed = re.search(r"([0-9,]+) found [0-9,]+ unique failures", done.stdout)
            if played is None:
                finding.violations.append(f"schemathesis ended with {done.returncode}")
                sys.stderr.write(done.stdout[-5000:] + done.stderr[-2000:])
                break
            finding.trials += int(played[1].replace(",", ""))
            if done.returncode or failed:
                finding.violations.append("a check failed")
                sys.stderr.write(done.stdout[-9000:])
                break
            if finding.trials >= cases:
                break
    return finding


def parser(name: str, inputs: int = 500_000, seed: int = 1) -> Finding:
    """Let atheris play with crypto.open ("envelope") or the X-Forwarded-For parser ("address"), see fuzz.py."""
    promise, deep = PARSERS[name]
    finding = Finding(promise, "atheris, guided by coverage, from sound examples; a trial is an input")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.faults.fuzz", name, folder, str(inputs), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if finding.expect(done.returncode == 0, f"something was raised: exit status {done.returncode}"):
        finding.trials, number = map(int, done.stdout.split())
        finding.note = f"{number:,} {deep}"
    else:
        sys.stderr.write(done.stderr[-5000:])
    return finding
