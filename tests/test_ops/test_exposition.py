"""The metrics: in what formats, where, and that their labels hold nothing that was sent."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import __version__, create_app
from quart_ots.edge.request import METHODS
from quart_ots.ops import exposition
from quart_ots.settings import Settings, StartError
from tests.asgi import Call
from tests.conftest import Created, post, read

PROMTOOL = shutil.which("promtool")
STEPS = {"created", "read", "burned", "locked", "refused"}
COMMANDS = {"find", "insert", "update", "delete"}


async def figures(client: Client) -> str:
    """Ask for the metrics as Prometheus does."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    text: str = await answer.get_data(as_text=True)
    return text


def labels(text: str) -> set[tuple[str, str]]:
    """Return the names and values of the labels of the service's own metrics."""
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith("quart_ots")]
    return {pair for family in families for sample in family.samples for pair in sample.labels.items()}


async def test_labels_are_known_beforehand(app: Quart, client: Client, created: Created) -> None:
    """Whatever is asked, no label holds anything but a route, a method, a status, a step or a command."""
    before = labels(await figures(client))  # other tests of this process have routes of their own
    await read(client, created.secret_key, "a wrong passphrase")
    for path in (f"/secrets/{created.secret_key}", f"/elsewhere/{created.secret_key}", "/a?b=c", "/generate/x"):
        for method in ("GET", "BREW", created.secret_key):
            await Call(app, method, path, b"").end()

    text = await figures(client)

    allowed = {
        "route": {rule.rule for rule in app.url_map.iter_rules()} | {"-"},
        "method": METHODS | {"-"},
        "step": STEPS,
        "command": COMMANDS,
        "version": {__version__},
    }
    found = labels(text)
    assert {name for name, _ in found} == {*allowed, "status", "le", "python"}
    assert {("route", "-"), ("method", "-"), ("route", "/secrets/<secret_key>")} <= found
    assert {(name, value) for name, value in found - before if name in allowed and value not in allowed[name]} == set()
    assert all(re.fullmatch(r"[1-5]\d\d|-", value) for name, value in found if name == "status")
    assert created.secret_key not in text


async def test_every_step_and_command_is_there_from_the_start(client: Client) -> None:
    """A rate needs a first figure: what has not happened yet is there, and says 0 or more."""
    text = await figures(client)

    for step in STEPS:
        assert re.search(rf'^quart_ots_secrets_total{{step="{step}"}} \d', text, re.MULTILINE)
    for command in COMMANDS:
        assert re.search(rf'^quart_ots_database_failures_total{{command="{command}"}} \d', text, re.MULTILINE)


@pytest.mark.parametrize("settings", [{"kdf_threads": 2, "kdf_queue": 7}], indirect=True)
async def test_size_of_the_pool(client: Client) -> None:
    """The metrics say how many hash at once, and for how many there is room."""
    text = await figures(client)

    assert "\nquart_ots_kdf_threads 2.0\n" in text
    assert "\nquart_ots_kdf_places 9.0\n" in text
    assert "\nquart_ots_kdf_queued 0.0\n" in text
    assert "\nquart_ots_kdf_busy 0.0\n" in text


async def test_openmetrics_on_request(client: Client) -> None:
    """A client that asks for OpenMetrics gets that."""
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert (await answer.get_data(as_text=True)).endswith("# EOF\n")


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the PATH")
async def test_metrics_are_well_formed(client: Client) -> None:
    """Promtool finds no fault in the metrics."""
    await post(client, "/generate", {})
    ours = "\n".join(line for line in (await figures(client)).splitlines() if "quart_ots" in line) + "\n"

    done = await asyncio.to_thread(
        subprocess.run, [PROMTOOL or "", "check", "metrics"], input=ours, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture
def elsewhere(settings: Settings, port: int) -> Settings:
    """Settings by which the metrics have a port of their own."""
    return settings.model_copy(update={"metrics_bind": f"127.0.0.1:{port}"})


def fetch(port: int) -> str:
    """Ask for the metrics on a port of their own."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


async def test_port_of_their_own(elsewhere: Settings, memory: None, port: int) -> None:
    """With METRICS_BIND the metrics are there while the service runs, and not on its own port."""
    app = create_app(elsewhere)
    async with app.test_app():
        text = await asyncio.to_thread(fetch, port)
        public = await app.test_client().get("/metrics")

    assert "\nquart_ots_kdf_threads " in text
    assert public.status_code == 404
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0


async def test_metrics_while_the_event_loop_is_stuck(elsewhere: Settings, memory: None, port: int) -> None:
    """On a port of their own the metrics are answered whatever the event loop does: they are needed most then."""
    async with create_app(elsewhere).test_app():
        assert "quart_ots_kdf_threads" in fetch(port)  # blocks the loop


async def test_port_that_is_taken(elsewhere: Settings, memory: None, port: int) -> None:
    """A port of the metrics that is taken ends the start with a line that names the setting."""
    with socket.create_server(("127.0.0.1", port)):
        app = create_app(elsewhere)

        with pytest.raises(StartError, match="quart_ots: QUART_OTS_METRICS_BIND: Address already in use"):
            await app.startup()


@pytest.fixture
def ipv6() -> Iterator[int]:
    """A free port of ::1, where this machine has IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as one:
            port = int(one.getsockname()[1])
    except OSError:
        pytest.skip("no IPv6 on this machine")
    yield port


def test_ipv6(ipv6: int) -> None:
    """The metrics' address may be one of IPv6."""
    stop = exposition.serve(f"[::1]:{ipv6}")
    try:
        with urllib.request.urlopen(f"http://[::1]:{ipv6}/metrics", timeout=30) as answer:
            assert b"quart_ots_kdf_threads" in answer.read()
    finally:
        stop()
