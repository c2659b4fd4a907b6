"""The operator's documents name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client import REGISTRY

from quart_ots import cli
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PROMTOOL = shutil.which("promtool")


def commands(group: click.Group, *before: str) -> Iterator[str]:
    """Yield the words of each command under a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield " ".join([*before, name])


def test_page_lists_every_command() -> None:
    """docs/operations.md has each of the operator's commands in its table, and no other."""
    section = (DOCS / "operations.md").read_text().split("\n## Commands\n")[1].split("\n## ")[0]

    listed = re.findall(r"^\| `([a-z ]+)` \|", section, re.MULTILINE)

    assert sorted(listed) == sorted(commands(cli.main))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS.glob("*.md")], ids=lambda page: str(page.name))
def test_pages_use_commands_that_exist(page: Path) -> None:
    """Where a page shows a call of `quart-ots`, it is of a command that there is."""
    leaves = set(commands(cli.main))
    known = {*leaves, *cli.main.commands}
    text = re.sub(r"\s+", " ", page.read_text())

    # In code, after a back tick or a path; prose is not meant.
    calls = re.findall(r"(?:`|/bin/|exec app )quart-ots ([a-z]+(?: [a-z]+)?)", text)

    # The second word may be an argument, or prose.
    assert [call for call in calls if call not in known and call.split()[0] not in leaves] == []


def test_documents_name_metrics_that_exist() -> None:
    """The dashboard, the rules and the page use no metric that the service does not have."""
    known = {family.name for family in REGISTRY.collect()}
    known |= {f"{name}{end}" for name in known for end in ("_total", "_bucket", "_count", "_sum")}
    texts = [(DOCS / name).read_text() for name in ("grafana.json", "alerts.yml", "operations.md")]

    used = {
        name for text in texts for name in re.findall(r"(?<![.\w])(?:quart_ots|process)_[a-z_]*[a-z](?![\w.*])", text)
    }

    assert len(used) > 10
    assert used - known == set()


def test_page_lists_every_metric() -> None:
    """docs/operations.md tells of each metric of the service's own."""
    text = (DOCS / "operations.md").read_text()
    table = text.split("\n## Metrics\n")[1].split("\n## ")[0]
    # The table shortens `quart_ots_kdf_threads`, `quart_ots_kdf_busy` to `quart_ots_kdf_threads`, `…_busy`.
    endings = set(re.findall(r"`…(_[a-z_]+)`", table))

    own = {family.name for family in REGISTRY.collect() if family.name.startswith("quart_ots_")}

    assert [
        name
        for name in sorted(own)
        if f"`{name}`" not in table and f"`{name}_total`" not in table and f"_{name.rpartition('_')[2]}" not in endings
    ] == []


def test_dashboard_is_one() -> None:
    """docs/grafana.json is JSON with a panel for each subject."""
    assert len(json.loads((DOCS / "grafana.json").read_text())["panels"]) > 8


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the PATH")
@pytest.mark.parametrize("words", [["check", "rules", "../docs/alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_alert_rules(words: list[str]) -> None:
    """Promtool finds no fault in the alert rules, and they fire when they should."""
    done = subprocess.run([PROMTOOL or "", *words], cwd=ROOT / "tests", capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
