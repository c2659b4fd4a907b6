"""README's commands and calls, run as printed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client import LOST, request
from tests.service import ROOT

README = (ROOT / "README.md").read_text()
CALLS = re.findall(r"```console\n\$ (.+)\n(.+)\n```", README)
URL = "http://127.0.0.1:8080"


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[None]:
    """Run the first command of the quick start, with this venv and an instance folder of its own."""
    command = next(line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    make run"))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8080)), "something else listens on README's port 8080"
    environment = {**os.environ, "VENV": sys.prefix, "QUART_OTS_INSTANCE_PATH": str(tmp_path / "instance")}
    with (tmp_path / "log").open("wb") as log:
        make = subprocess.Popen(
            command, shell=True, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            request("GET", f"{URL}/health/ready")
            break
        except LOST:
            assert make.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
    yield
    os.killpg(make.pid, signal.SIGINT)  # Ctrl-C
    make.wait(30)
    log_text = (tmp_path / "log").read_text()
    assert "for local use by one process, not for real secrets" in log_text
    assert "Traceback" not in log_text


@pytest.mark.own_database
@pytest.mark.usefixtures("make_run")
def test_quick_start() -> None:
    """`make run` serves, and the three calls answer as printed: created, read, not found."""
    keys: dict[str, str] = {}
    answers = []
    for call, _ in CALLS:
        for name, key in keys.items():
            call = call.replace(name.upper(), key)
        done = subprocess.run(call, shell=True, capture_output=True, text=True, check=True)
        answers.append(done.stdout.strip())
        keys.update({name: key for name, key in json.loads(done.stdout).items() if name.endswith("_key")})

    printed = [answer for _, answer in CALLS]
    assert len(answers) == 3
    assert json.loads(answers[0]).keys() == json.loads(printed[0]).keys()
    assert answers[1:] == printed[1:]
    assert request("GET", f"{URL}/docs").status == 200


def test_second_command_is_the_one_that_ci_runs() -> None:
    """README's test command is what .ci/run calls."""
    command = next(line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    make test"))

    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: str(page.name))
def test_links_lead_somewhere(page: Path) -> None:
    """Links between the pages lead to files that are there."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on the PATH")
def test_help_lists_every_command() -> None:
    """`make help` has a line for each command of the Makefile."""
    targets = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(targets)
