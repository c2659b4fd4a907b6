"""The image, whatever starts it."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.docker.stack import inspect, logged, run, serves
from tests.mongod import wait_for
from tests.service import draw_master_key

BASE_IMAGE = "python:3.13-slim-trixie"
MAX_ADDED_MB = 120
# A database that is not there: the service lives without one.
NOWHERE = "QUART_OTS_MONGODB_URL=mongodb://127.0.0.1:9/quart_ots"
Start = Callable[..., str]


@pytest.fixture
def start(image: str) -> Iterator[Start]:
    """Starts containers of the image with options of docker run's, and removes them at the end."""
    started = []

    def start(*options: str) -> str:
        started.append(run("docker", "run", "-d", *options, image))
        return started[-1]

    yield start
    for container in started:
        run("docker", "rm", "-f", "-v", container)


def test_image_is_small_and_holds_no_secret(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The image adds little to its base, and has no compiler, pip, test, key or data in it."""
    sizes = [int(run("docker", "image", "inspect", name, "-f", "{{.Size}}")) for name in (image, BASE_IMAGE)]
    added = (sizes[0] - sizes[1]) / 1e6
    with capsys.disabled():
        print(f"\nimage: {sizes[0] / 1e6:.0f} MB, {added:.0f} MB over its base")  # noqa: T201

    files = run("docker", "run", "--rm", image, "find", "/app", "-not", "-path", "/app/venv/*").splitlines()
    tools = run("docker", "run", "--rm", image, "sh", "-c", "command -v gcc cc || true")
    unwanted = run("docker", "run", "--rm", image, "find", "/app", "-name", "*.whl", "-o", "-name", "pip")
    history = run("docker", "history", "--no-trunc", image)
    labels = json.loads(run("docker", "image", "inspect", image, "-f", "{{json .Config.Labels}}"))

    assert added < MAX_ADDED_MB
    assert tools == unwanted == ""
    assert {file.split("/")[2] for file in files if file.count("/") > 1} == {"instance", "quart_ots", "venv"}
    assert not any("instance/" in file or "test" in file for file in files)
    assert not any(word in history for word in ("MASTER_KEYS", "MONGODB_URL", "PASSWORD"))
    assert {f"org.opencontainers.image.{name}" for name in ("source", "version", "licenses")} <= set(labels)


def test_health_is_that_of_the_process(start: Start) -> None:
    """The image's health check passes while the database is away, and past a proxy that the environment names."""
    proxy = ("-e", "http_proxy=http://127.0.0.1:9", "-e", "HTTP_PROXY=http://127.0.0.1:9")

    container = start("-e", NOWHERE, *proxy, "--health-interval", "1s")

    wait_for(lambda: inspect(container)["State"]["Health"]["Log"], 60)
    wait_for(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", 60)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_listens_on_both_families(start: Start, host: str) -> None:
    """The service answers over IPv4 and over IPv6."""
    container = start("-e", NOWHERE, "--sysctl", "net.ipv6.conf.all.disable_ipv6=0")

    wait_for(lambda: serves(container, host=host), 60)


def test_without_ipv6(start: Start) -> None:
    """Where IPv6 is turned off, the service answers over IPv4."""
    container = start("-e", NOWHERE, "--sysctl", "net.ipv6.conf.all.disable_ipv6=1")

    wait_for(lambda: serves(container), 60)


def test_arbitrary_user(start: Start) -> None:
    """A user id that the image does not know, in group 0 as OpenShift gives it, makes and keeps a master key."""
    volume = f"quart-ots-test-{secrets.token_hex(4)}"
    options = ("-e", NOWHERE, "--user", "1000680000:0", "-v", f"{volume}:/app/instance")
    confined = ("--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp")
    try:
        keys = []
        for _ in range(2):
            container = start(*options, *confined)
            wait_for(lambda: serves(container), 60)  # noqa: B023
            keys.append(run("docker", "exec", container, "cat", "instance/master.key"))
            mode = run("docker", "exec", container, "stat", "-c", "%u %a", "instance/master.key")
            run("docker", "rm", "-f", container)

        assert keys[0] == keys[1] != ""
        assert mode == "1000680000 600"
    finally:
        run("docker", "volume", "rm", volume)


def test_arbitrary_user_who_needs_no_folder(start: Start) -> None:
    """With keys and URL given, nothing is written to the instance folder."""
    keys = f"QUART_OTS_MASTER_KEYS={draw_master_key()}"

    container = start("-e", NOWHERE, "-e", keys, "--user", "1000680000:0", "--read-only", "--tmpfs", "/tmp")

    wait_for(lambda: serves(container), 60)
    assert run("docker", "exec", container, "ls", "-A", "instance") == ""


@pytest.mark.parametrize("limit", [2, 6, 12, 18])
def test_too_few_processes_allowed(image: str, limit: int) -> None:
    """Where the system refuses threads, the start fails with one line, whichever thread it is that cannot be had."""
    threads = ("-e", "QUART_OTS_KDF_THREADS=2", "-e", "MOTOR_MAX_WORKERS=5")

    done = subprocess.run(
        ["docker", "run", "--rm", "--pids-limit", str(limit), "-e", NOWHERE, *threads, image],
        capture_output=True,
        text=True,
        timeout=120,
    )

    (line,) = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1
    assert line.startswith("quart_ots: the system refuses threads")


def test_wrong_setting(start: Start) -> None:
    """A wrong setting ends the container with status 1 and one line that names it."""
    container = start("-e", NOWHERE, "-e", "QUART_OTS_BCRYPT_COST=99")

    assert run("docker", "wait", container) == "1"
    assert logged(container).splitlines() == ["quart_ots: QUART_OTS_BCRYPT_COST must be a whole number from 4 to 16"]
