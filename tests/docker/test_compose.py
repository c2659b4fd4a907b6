"""The image and the compose files, on a running Docker engine."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.service import PHRASE, ROOT, free_port
from tests.test_server import at_once

COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
BASE_IMAGE = "python:3.13-slim-trixie"
MAX_ADDED_MB = 120


def engine() -> bool:
    """Say whether there is a Docker engine."""
    return (
        shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )


pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not engine(), reason="no Docker engine answers"),
]


def run(*command: str) -> str:
    """Run a command that must work, and give its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


class Stack:
    """One compose project of its own, on free ports."""

    def __init__(self, name: str, *files: str, **environment: str) -> None:
        self.port = free_port()
        self._environment = {**os.environ, "PUBLISH_PORT": str(self.port), **environment}
        self._command = [*COMPOSE, "-p", f"quart-ots-test-{name}-{os.getpid()}"]
        for file in files or ("docker-compose.yml",):
            self._command += ["-f", file]
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{environment.get('PROXY_PORT', self.port)}",
            timeout=30,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def compose(self, *words: str) -> str:
        """Run docker-compose on the project."""
        done = subprocess.run([*self._command, *words], cwd=ROOT, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def container(self, service: str) -> str:
        """Find a service's container."""
        return self.compose("ps", "-q", service).split()[0]

    def up(self, *words: str) -> None:
        """Start it, and wait until it is ready."""
        self.compose("up", "-d", *words)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until /health/ready says so."""
        wait_for(lambda: self.status("/health/ready") == 200)

    def status(self, path: str) -> int:
        """Get a path, and give the status; 0 for none."""
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def generate(self, secret: str = "the secret") -> dict[str, str]:
        """Create a secret."""
        answer = self.client.post("/generate", json={"secret": secret, "passphrase": PHRASE})
        assert answer.status_code == 201, answer.text
        created: dict[str, str] = answer.json()
        return created

    def read(self, created: dict[str, str]) -> httpx.Response:
        """Try to read a secret."""
        return self.client.post(f"/secrets/{created['secret_key']}", json={"passphrase": PHRASE})


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def inspect(container: str) -> dict[str, Any]:
    """Look at a container."""
    (details,) = json.loads(run("docker", "inspect", container))
    found: dict[str, Any] = details
    return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The project as `docker-compose up` starts it."""
    stack = Stack("main")
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.compose("down", "-v")


def test_up_is_healthy_and_serves(stack: Stack) -> None:
    """After `docker-compose up` a secret is created, read once, and then gone; the docs page is there."""
    created = stack.generate("over containers")
    wait_for(lambda: inspect(stack.container("app"))["State"]["Health"]["Status"] == "healthy")

    answers = [stack.read(created) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 404]
    assert answers[0].json() == {"secret": "over containers"}
    assert [stack.status(path) for path in ("/docs", "/docs/swagger-ui-bundle.js", "/openapi.json")] == [200] * 3


def test_app_is_confined(stack: Stack) -> None:
    """The app has no root, no capability, no way to gain one, and nothing to write but its instance and /tmp."""
    app = stack.container("app")
    script = """
import os, pathlib
print(os.getuid(), os.getgid())
for line in pathlib.Path("/proc/1/status").read_text().splitlines():
    if line.startswith(("Cap", "NoNewPrivs")):
        print(line.replace("\\t", " "))
for folder, _, _ in os.walk("/"):
    if not folder.startswith(("/proc", "/sys", "/dev")) and os.access(folder, os.W_OK):
        print("writable", folder)
"""

    lines = run("docker", "exec", app, "python", "-c", script).splitlines()

    assert lines[0] == "10001 10001"
    assert all(line.endswith(" 0000000000000000") for line in lines if line.startswith("Cap"))
    assert "NoNewPrivs: 1" in lines
    assert sorted(line for line in lines if line.startswith("writable")) == ["writable /app/instance", "writable /tmp"]
    assert inspect(app)["HostConfig"]["ReadonlyRootfs"] is True


def test_mongo_is_hidden_and_asks_who_comes(stack: Stack) -> None:
    """MongoDB is published nowhere, sits on an internal network, and refuses clients without credentials."""
    mongo = inspect(stack.container("mongo"))
    (network,) = mongo["NetworkSettings"]["Networks"]
    stranger = (
        "import pymongo\nclient = pymongo.MongoClient('mongo', serverSelectionTimeoutMS=5000)\n"
        "try:\n    client.quart_ots.secrets.find_one()\n"
        "except pymongo.errors.OperationFailure as error:\n    print(error.code)"
    )

    refusal = run("docker", "exec", stack.container("app"), "python", "-c", stranger)

    assert refusal == "13"  # Unauthorized
    assert not any(mongo["NetworkSettings"]["Ports"].values())
    assert json.loads(run("docker", "network", "inspect", network))[0]["Internal"] is True


def crash(container: str) -> None:
    """Kill a container's first process as a crash would. After `docker kill`, Docker would not restart by policy."""
    os.kill(inspect(container)["State"]["Pid"], signal.SIGKILL)


def kill(container: str) -> None:
    """Kill a container as an operator would, and start it again."""
    run("docker", "kill", "-s", "KILL", container)
    run("docker", "start", container)


@pytest.mark.parametrize("end", [crash, kill])
@pytest.mark.parametrize("victim", ["app", "mongo"])
def test_killed_under_load(stack: Stack, victim: str, end: Callable[[str], None]) -> None:
    """A killed app or database comes back without a restart of the other; what was answered before stays true."""
    waiting, was_read = stack.generate("waits"), stack.generate()
    assert stack.read(was_read).status_code == 200
    other = stack.container("mongo" if victim == "app" else "app")
    started = inspect(other)["State"]["StartedAt"]
    acknowledged: list[dict[str, str]] = []
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            try:
                answer = stack.client.post("/generate", json={"secret": "under load", "passphrase": PHRASE})
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            statuses[answer.status_code] += 1
            if answer.status_code == 201:
                acknowledged.append(answer.json())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(acknowledged) > 10)

    end(stack.container(victim))

    before = len(acknowledged)
    wait_for(lambda: len(acknowledged) > before + 10)
    over.set()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {201, 503}
    assert stack.read(was_read).status_code == 404
    assert stack.read(waiting).json() == {"secret": "waits"}
    assert Counter(stack.read(created).status_code for created in acknowledged) == {200: len(acknowledged)}
    assert inspect(other)["State"]["StartedAt"] == started


def test_stop_answers_what_is_in_flight(stack: Stack) -> None:
    """`docker stop` lets requests in flight finish, and ends with status 0 within its 10 s, slow clients or not."""
    app = stack.container("app")
    statuses: list[int] = []

    def create(_: int) -> None:
        body = {"secret": "in flight", "passphrase": PHRASE}
        statuses.append(stack.client.post("/generate", json=body).status_code)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    # A third is answered: the rest have long arrived, and wait for the KDF.
    wait_for(lambda: len(statuses) >= 10)
    run("docker", "stop", "-t", "10", app)
    for thread in threads:
        thread.join()

    assert statuses == [201] * 30
    assert inspect(app)["State"]["ExitCode"] == 0
    run("docker", "start", app)
    stack.wait_until_ready()


def test_down_keeps_and_down_v_forgets() -> None:
    """`down` and `up` keep secrets and master key; `down -v` loses both, and the next log misleads nobody."""
    stack = Stack("volumes")
    key_file = ("cat", "/app/instance/master.key")
    try:
        stack.up("--build")
        kept, lost = stack.generate("kept"), stack.generate("lost")
        key = run("docker", "exec", stack.container("app"), *key_file)
        stack.compose("down")

        stack.up()
        assert stack.read(kept).json() == {"secret": "kept"}
        assert run("docker", "exec", stack.container("app"), *key_file) == key
        stack.compose("down", "-v")

        stack.up()
        assert stack.read(lost).status_code == 404
        assert run("docker", "exec", stack.container("app"), *key_file) != key
        log = run("docker", "logs", stack.container("app"))
        assert "ring lacks" not in log
        assert '"warning"' not in log
    finally:
        stack.compose("down", "-v")


def test_image_is_small_and_holds_no_secret(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """The image adds little to its base, and has no compiler, pip cache, test, key or data in it."""
    image = inspect(stack.container("app"))["Image"]
    sizes = [int(run("docker", "image", "inspect", name, "-f", "{{.Size}}")) for name in (image, BASE_IMAGE)]
    added = (sizes[0] - sizes[1]) / 1e6
    with capsys.disabled():
        print(f"\nimage: {sizes[0] / 1e6:.0f} MB, {added:.0f} MB over its base")  # noqa: T201

    files = run("docker", "run", "--rm", image, "find", "/app", "-not", "-path", "/app/venv/*").splitlines()
    history = run("docker", "history", "--no-trunc", image)

    assert added < MAX_ADDED_MB
    assert run("docker", "run", "--rm", image, "sh", "-c", "command -v gcc cc || true") == ""
    assert run("docker", "run", "--rm", image, "find", "/app", "-name", "*.whl", "-o", "-name", "pip") == ""
    assert {file.split("/")[2] for file in files if file.count("/") > 1} == {"instance", "quart_ots", "venv"}
    assert not any("instance/" in file for file in files)
    assert not any(word in history for word in ("MASTER_KEYS", "MONGODB_URL", "PASSWORD"))
    labels = json.loads(run("docker", "image", "inspect", image, "-f", "{{json .Config.Labels}}"))
    assert {f"org.opencontainers.image.{name}" for name in ("source", "version", "licenses")} <= set(labels)


def test_two_apps_behind_the_proxy() -> None:
    """Of 100 readers across two apps behind the proxy exactly one gets the secret; forged addresses gain nothing."""
    stack = Stack(
        "proxy", "docker-compose.yml", "docker-compose.proxy.yml", PUBLISH_PORT="0", PROXY_PORT=str(free_port())
    )
    try:
        stack.up("--build", "--scale", "app=2")
        wait_for(lambda: all(inspect(app)["State"]["Health"]["Status"] == "healthy" for app in apps(stack)))
        for number in range(5):
            created = stack.generate(f"round {number}")

            answers = at_once(100, lambda _: stack.read(created))  # noqa: B023

            statuses = Counter(answer.status_code for answer in answers)
            assert statuses[200] == 1
            assert set(statuses) <= {200, 404, 503}
            refusals = {answer.json()["type"] for answer in answers if answer.status_code == 503}
            assert refusals <= {"urn:quart-ots:problem:busy"}  # with other keys it would be unreadable-secret
        left = []
        for number in range(20):
            answer = stack.client.get(f"/receipts/{'a' * 43}", headers={"X-Forwarded-For": f"198.51.100.{number}"})
            left.append(int(answer.headers["RateLimit-Remaining"]))
        assert min(left) < 595
    finally:
        stack.compose("down", "-v")


def apps(stack: Stack) -> list[str]:
    """Find the containers of the app."""
    return stack.compose("ps", "-q", "app").split()


def test_secrets_as_files(tmp_path: Any) -> None:
    """With Docker secrets no password or key stands in a container's environment, and none is made."""
    (tmp_path / "mongodb_url").write_text("mongodb://root:hunter2hunter2@mongo/quart_ots?authSource=admin\n")
    (tmp_path / "mongo_password").write_text("hunter2hunter2")
    (tmp_path / "master_keys").write_text("A" * 43 + "=\n")
    for file in tmp_path.iterdir():
        file.chmod(0o444)
    stack = Stack("secrets", "docker-compose.yml", "docker-compose.secrets.yml", SECRETS=str(tmp_path))
    try:
        stack.up("--build")

        assert stack.read(stack.generate()).status_code == 200
        for service in ("app", "mongo"):
            environment = str(inspect(stack.container(service))["Config"]["Env"])
            assert "hunter2" not in environment
            assert "not-secret" not in environment
        assert run("docker", "exec", stack.container("app"), "ls", "/app/instance") == ""
    finally:
        stack.compose("down", "-v")


def test_hub_file_runs_an_image_without_a_checkout(stack: Stack, tmp_path: Any) -> None:
    """The file for the published image needs no other file."""
    image = inspect(stack.container("app"))["Config"]["Image"]
    shutil.copy(ROOT / "docker-compose.hub.yml", tmp_path)
    hub = Stack("hub", str(tmp_path / "docker-compose.hub.yml"), QUART_OTS_IMAGE=image)
    try:
        hub.up()

        assert hub.read(hub.generate()).status_code == 200
    finally:
        hub.compose("down", "-v")


def test_suite_passes_in_containers() -> None:
    """The test compose file runs the suite against the mongo container, and returns pytest's status."""
    stack = Stack("suite", "docker-compose-test.yml")
    try:
        output = stack.compose("up", "--build", "--exit-code-from", "tests", "--no-color")
    finally:
        stack.compose("down", "-v")

    assert " passed" in output
    assert " failed" not in output
