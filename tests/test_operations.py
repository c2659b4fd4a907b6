"""What the operator sees: metrics, log lines, health, boot checks."""

import asyncio
import contextlib
import json
import logging
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from pymongo.errors import AutoReconnect
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import checks, create_app, db, logs, models
from quart_ots.kdf import KdfPool
from quart_ots.observe import METHODS
from quart_ots.routes import EXTENSION, Parts
from tests.conftest import Created, MemoryAdmin, MemoryClient, post, read
from tests.service import ROOT


async def brew(client: Client, path: str) -> None:
    """Ask in a method that nobody knows."""
    async with client.request(path, method="BREW") as connection:
        await connection.send_complete()


def step(name: str) -> float:
    """Give how often a step was counted."""
    return REGISTRY.get_sample_value("quart_ots_secrets_total", {"step": name}) or 0


async def figures(client: Client) -> str:
    """Ask for the metrics as Prometheus does."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    text: str = await answer.get_data(as_text=True)
    return text


async def test_steps_are_counted_once(client: Client) -> None:
    """Created, read, burned, locked and refused count what happened, once each, whatever is tried again."""
    steps = ("created", "read", "burned", "locked", "refused")
    before = {name: step(name) for name in steps}
    made = []
    for _ in range(3):
        answer = await post(client, "/generate", {"secret": "a secret", "passphrase": "right"})
        made.append(Created(**await answer.get_json()))
    for _ in range(2):
        await read(client, made[0].secret_key, "right")
        await client.delete(f"/receipts/{made[1].receipt_key}")
    await asyncio.gather(*(read(client, made[2].secret_key, "wrong") for _ in range(12)))

    assert {name: step(name) - before[name] for name in steps} == {
        "created": 3,
        "read": 1,
        "burned": 1,
        "locked": 1,
        "refused": 10,
    }


def commands(metric: str) -> dict[str, float]:
    """Give what was counted of each kind of database command."""
    return {
        name: REGISTRY.get_sample_value(f"quart_ots_database_{metric}", {"command": name}) or 0
        for name in ("find", "insert", "update", "delete")
    }


async def test_commands_are_counted(client: Client) -> None:
    """A create is two inserts, a read a find, two updates and a delete, and none of them fails."""
    before, failed = commands("command_duration_seconds_count"), commands("failures_total")
    answer = await post(client, "/generate", {"secret": "a secret", "passphrase": "right"})
    await read(client, (await answer.get_json())["secret_key"], "right")
    after = commands("command_duration_seconds_count")

    assert {name: after[name] - before[name] for name in after} == {"find": 1, "insert": 2, "update": 2, "delete": 1}
    assert commands("failures_total") == failed


async def test_failed_commands_are_counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that the database does not answer counts as failed, and is not measured."""
    measured, failed = commands("command_duration_seconds_count"), commands("failures_total")

    async def fail(*_: object) -> None:
        raise AutoReconnect

    monkeypatch.setattr(models.Secret, "get", fail)
    assert (await client.get(f"/secrets/{'k' * 43}")).status_code == 503

    assert commands("failures_total") == {**failed, "find": failed["find"] + 1}
    assert commands("command_duration_seconds_count") == measured


async def test_labels_are_known_beforehand(app: Quart, client: Client, created: Created) -> None:
    """Whatever is asked, no label holds anything but a route, a method, a status, a step or a command."""
    for path in (f"/secrets/{created.secret_key}", f"/elsewhere/{created.secret_key}", "/a?b=c", "/generate/x"):
        await client.get(path)
        await brew(client, path)

    routes = {rule.rule for rule in app.url_map.iter_rules()} | {"-"}
    families = [
        family for family in text_string_to_metric_families(await figures(client)) if family.name.startswith("quart_")
    ]
    labels = [
        (name, value) for family in families for sample in family.samples for name, value in sample.labels.items()
    ]
    allowed = {
        "route": routes,
        "method": METHODS | {"-"},
        "step": {"created", "read", "burned", "locked", "refused"},
    }
    assert {value for name, value in labels if name in allowed} <= set().union(*allowed.values())
    assert all(re.fullmatch(r"\d{3}|-", value) for name, value in labels if name == "status")
    assert {name for name, _ in labels} <= {*allowed, "status", "command", "le", "version", "python"}
    assert created.secret_key not in await figures(client)


async def test_openmetrics_on_request(client: Client) -> None:
    """Who asks for OpenMetrics gets that."""
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert (await answer.get_data(as_text=True)).endswith("# EOF\n")


async def test_metrics_elsewhere_are_not_here(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With METRICS_BIND set, the main port has no /metrics."""
    monkeypatch.setattr(db, "AsyncIOMotorClient", MemoryClient)
    app = create_app({**settings, "METRICS_BIND": "127.0.0.1:1"})

    assert (await app.test_client().get("/metrics")).status_code == 404


def test_docs_name_metrics_that_exist() -> None:
    """The dashboard and the rules use no metric that the service does not have."""
    known = {family.name for family in REGISTRY.collect()} | {"quart_ots_secrets_total"}
    known |= {f"{name}{end}" for name in known for end in ("_total", "_bucket", "_count", "_sum")}
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    texts = [(ROOT / "docs" / name).read_text() for name in ("grafana.json", "alerts.yml", "operations.md")]

    used = {
        name for text in texts for name in re.findall(r"(?<![.\w])(?:quart_ots|process)_[a-z_]*[a-z](?![\w.*])", text)
    }

    assert len(dashboard["panels"]) > 8
    assert used - known - {"quart_ots_ots"} == set()


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the PATH")
def test_alert_rules() -> None:
    """Promtool finds no fault in the alert rules, and they fire when they should."""
    for command in (["check", "rules", "../docs/alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([PROMTOOL or "", *command], cwd=ROOT / "tests", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the PATH")
async def test_metrics_are_well_formed(client: Client) -> None:
    """Promtool finds no fault in the metrics."""
    ours = "\n".join(line for line in (await figures(client)).splitlines() if "quart_ots" in line) + "\n"

    done = await asyncio.to_thread(
        subprocess.run, [PROMTOOL or "", "check", "metrics"], input=ours, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("sent", ["try-1", "a" * 36, "0190f7f1-3c53-7d6b-8b0e-1f2e3d4c5b6a"])
async def test_request_id_is_taken_over(client: Client, caplog: pytest.LogCaptureFixture, sent: str) -> None:
    """A valid X-Request-ID comes back."""
    answer = await client.get("/health/live", headers={"X-Request-ID": sent})

    assert answer.headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "k" * 43, "a b", "a\x7f", 'x"y', "ü"])
async def test_request_id_is_drawn(client: Client, sent: str) -> None:
    """What is no id, or long enough for a key, is replaced."""
    answer = await client.get("/health/live", headers={"X-Request-ID": sent})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def facts(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Give the last request's line."""
    record = next(record for record in reversed(caplog.records) if record.message == "request")
    return {
        name: getattr(record, name)
        for name in ("method", "route", "status", "bytes", "address")
        if hasattr(record, name)
    }


async def test_request_line(client: Client, created: Created, caplog: pytest.LogCaptureFixture) -> None:
    """A request's line has method, route, status and bytes, and neither path nor address."""
    caplog.set_level(logging.INFO)

    answer = await client.get(f"/secrets/{created.secret_key}?a=b")

    size = len(await answer.get_data())
    assert facts(caplog) == {"method": "GET", "route": "/secrets/<secret_key>", "status": 200, "bytes": size}
    await client.head(f"/secrets/{created.secret_key}")
    assert facts(caplog)["bytes"] == 0
    await brew(client, "/x")
    assert facts(caplog)["route"] == facts(caplog)["method"] == "-"


async def test_request_line_with_address(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The address is logged where a setting says so: the one that can be believed, and no text beside it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(db, "AsyncIOMotorClient", MemoryClient)
    app = create_app({**settings, "LOG_ADDRESSES": 1, "TRUSTED_PROXIES": 1})
    for sent, address in (("192.0.2.7, 2001:db8::7", "2001:db8::7"), ("fe80::1%sent", "fe80::1"), ("sent", "local")):
        await app.test_client().get("/health/live", headers={"X-Forwarded-For": sent})
        assert facts(caplog)["address"] == address


async def test_unexpected_exception(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours is a 500 with the request's id, and one line with classes and places but no values."""
    caplog.set_level(logging.INFO)

    async def fail() -> str:
        try:
            return str(int("a local secret"))
        except ValueError as error:
            raise KeyError("another local secret") from error

    app.add_url_rule("/fail", "fail", fail)

    answer = await app.test_client().get("/fail", headers={"X-Request-ID": "try-1"})

    body = await answer.get_json(force=True)
    assert (answer.status_code, body["request_id"]) == (500, "try-1")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    line = logs.formatter(colours=False, as_json=True).format(errors[0])
    assert json.loads(line)["message"].startswith("unexpected KeyError on GET /fail at ")
    assert ", after ValueError at " in line
    assert "local secret" not in caplog.text + line


def test_lines_for_people() -> None:
    """On a terminal a line is coloured text with the same facts."""
    record = logging.makeLogRecord({"name": "quart_ots", "msg": "request", "levelname": "INFO", "route": "/generate"})

    line = logs.formatter(colours=True, as_json=False).format(record)

    assert "\x1b[" in line
    assert "/generate" in line
    assert not line.startswith("{")


@pytest.mark.parametrize("settings", [{"KDF_THREADS": 2, "KDF_QUEUE": 100}], indirect=True)
async def test_retry_after_is_estimated(app: Quart, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pool says to come back when those in line will be through, as fast as keys were of late."""
    parts: Parts = app.extensions[EXTENSION]
    monkeypatch.setattr(parts.kdf, "_seconds", 0.5)
    with contextlib.ExitStack() as line:
        for _ in range(102):
            line.enter_context(parts.kdf.place())

        creation = await post(client, "/generate", {"secret": "a secret", "passphrase": "p"})
        ready = await client.get("/health/ready")

    # 102 places, two threads, the half of a second each
    assert (creation.status_code, creation.headers["Retry-After"]) == (503, "26")
    assert (ready.status_code, (await ready.get_json(force=True))["type"]) == (503, "urn:quart-ots:problem:busy")
    assert (await client.get("/health/live")).status_code == 200


async def test_pool_learns_how_long_a_key_takes() -> None:
    """The estimate follows what keys take, up and down."""
    pool = KdfPool(threads=1, queue=0)
    first = pool._seconds
    with pool.place():
        for _ in range(20):
            await pool.run(sum, [])

    assert pool._seconds < first
    assert pool.patience() == 1
    pool.close()


async def test_not_ready_after_the_end(app: Quart, client: Client) -> None:
    """A service that is being stopped is not ready, and says why."""
    await app.extensions[EXTENSION].drain.end()

    answer = await client.get("/health/ready")

    assert (answer.status_code, (await answer.get_json(force=True))["type"]) == (503, "urn:quart-ots:problem:draining")


@pytest.fixture
async def lines(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request: Any
) -> AsyncIterator[list[str]]:
    """What an app says at its start of a database that answers as the test's parameter has it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(db, "AsyncIOMotorClient", MemoryClient)
    monkeypatch.setattr(MemoryAdmin, "answers", {**MemoryAdmin.answers, **request.param})
    app = create_app(settings)
    async with app.test_app():
        await asyncio.sleep(0.05)
        yield [f"{record.levelname} {record.message}" for record in caplog.records]


@pytest.mark.parametrize("lines", [{"hello": {"setName": "rs0"}}], indirect=True)
async def test_boot_lines(lines: list[str]) -> None:
    """A database that is well gets a line each for version, clock, indexes and keys."""
    assert "INFO database: version 8.0.4, replica set rs0" in lines
    assert any(re.fullmatch(r"INFO clock: the database's is 0\.\d s .* this machine's", line) for line in lines)
    assert "INFO indexes: in place" in lines
    assert any(re.fullmatch("INFO master keys: [0-9a-f]{16} open every envelope", line) for line in lines)


@pytest.mark.parametrize("lines", [{"buildInfo": {"version": "5.0.31"}}], indirect=True)
async def test_old_database(lines: list[str]) -> None:
    """A database that is too old is told in a line, and not used."""
    assert "WARNING the database is not ready: it is version 5.0.31, and 6.0 or newer is needed" in lines
    assert "INFO indexes: in place" not in lines


@pytest.mark.parametrize("lines", [{"hello": {"localTime": datetime(2001, 1, 1)}}], indirect=True)
async def test_clock_far_away(lines: list[str]) -> None:
    """A clock that is years away is a warning."""
    assert any(line.startswith("WARNING clock: the database's is ") and "behind" in line for line in lines)


@pytest.mark.parametrize(("seconds", "level"), [(5, logging.INFO), (5.1, logging.WARNING), (-5.1, logging.WARNING)])
def test_clock_skew(seconds: float, level: int) -> None:
    """A clock may be 5 s away, seen from the middle of the time that asking took."""
    sent = datetime(2027, 1, 1, tzinfo=UTC)
    received = sent + timedelta(seconds=2)

    assert checks.tell_skew(sent + timedelta(seconds=1 + seconds), sent, received)[0] == level


def test_page_names_every_command() -> None:
    """docs/operations.md has each of the operator's commands, and no other."""
    text = (ROOT / "docs" / "operations.md").read_text()
    words = set(re.findall(r"`ots ([a-z ]+?)`", text))

    assert words <= {"keys list", "keys new", "keys check", "config", "stats", "purge"}
    assert len(words) == 6
