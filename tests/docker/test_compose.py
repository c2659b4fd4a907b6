"""The compose files, as an operator uses them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quart_ots.edge.request import LAST
from quart_ots.ops.serve import GRACE
from quart_ots.settings import Settings, variable
from tests.docker.stack import PATIENCE, Load, Stack, crash, inspect, kill, logged, run, serves
from tests.mongod import wait_for
from tests.service import ROOT, draw_master_key, figure

WHOLE = ("docker-compose.yml", "docker-compose.hub.yml", "docker-compose.cluster.yml")  # each runs on its own
PROXY = ("docker-compose.yml", "docker-compose.proxy.yml")
READERS = 100


@pytest.mark.parametrize("file", WHOLE)
def test_every_setting_is_passed_on(file: str) -> None:
    """Each setting of the service's can be set in the shell or in .env."""
    names = [variable(name) for name in Settings.model_fields]

    config = Stack("config", file, environment={name: f"the {name}" for name in names}).compose("config")

    assert [name for name in names if f"{name}: the {name}" not in config] == []


def test_example_names_what_there_is() -> None:
    """.env.example has no setting that there is none of, and lacks none that makes sense in a container."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = {line[1:].partition("=")[0] for line in lines if line.startswith("#QUART_OTS_")}
    own = {variable("instance_path"), variable("mongod")}

    assert named - {"QUART_OTS_IMAGE"} == {variable(name) for name in Settings.model_fields} - own


@pytest.mark.parametrize("file", [*WHOLE, "docker-compose-test.yml"])
def test_other_mongo_image(file: str) -> None:
    """MONGO_IMAGE takes the place of every MongoDB image, for machines that it does not run on."""
    config = Stack("config", file, environment={"MONGO_IMAGE": "elsewhere/mongo:7"}).compose("config")

    assert "image: elsewhere/mongo:7" in config
    assert "image: mongo" not in config


def test_up_is_healthy_and_serves(stack: Stack) -> None:
    """After `docker-compose up` a secret is created, read once, and then gone; the docs page is there."""
    created = stack.generate("over containers")
    wait_for(lambda: inspect(stack.container("app"))["State"]["Health"]["Status"] == "healthy")

    answers = [stack.read(created) for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 404]
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


def test_operators_commands_in_the_container(stack: Stack) -> None:
    """`docker-compose exec app quart-ots` runs the operator's commands, with the app's settings, in any folder."""
    created = stack.generate()

    counts = json.loads(stack.compose("exec", "-T", "--workdir", "/", "app", "quart-ots", "stats", "--json"))

    assert counts["pending"] > 0
    assert stack.read(created).status == 200


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


@pytest.mark.parametrize("end", [crash, kill])
@pytest.mark.parametrize("victim", ["app", "mongo"])
def test_killed_under_load(stack: Stack, victim: str, end: Callable[[str], None]) -> None:
    """A killed app or database comes back without a restart of the other; what was answered before stays true."""
    waiting, was_read = stack.generate("waits"), stack.generate()
    assert stack.read(was_read).status == 200
    other = stack.container("mongo" if victim == "app" else "app")
    started = inspect(other)["State"]["StartedAt"]

    with Load(stack).running() as load:
        load.wait_for_more()
        end(stack.container(victim))
        load.wait_for_more()

    assert set(load.statuses) <= {200, 201, 503}
    load.check()
    assert stack.read(was_read).status == 404
    assert stack.read(waiting).json() == {"secret": "waits"}
    assert inspect(other)["State"]["StartedAt"] == started


def test_grace_period_suffices(stack: Stack) -> None:
    """Docker waits longer than the longest stop: the grace, and the end of what was begun in it."""
    assert inspect(stack.container("app"))["Config"]["StopTimeout"] > GRACE + LAST + 1


def test_stop_under_readers(image: str) -> None:
    """With more readers than a stop has time for, each is answered 200, 404 or 503, and no secret is lost.

    Those who wait for a thread are told 503, and have used no attempt; who is being hashed for is answered.
    """
    with Stack("stop", environment={"QUART_OTS_BCRYPT_COST": "13"}).running() as stack:  # half a second each
        waiting = [creation.result().json() for creation in [stack.start_generate() for _ in range(8)]]
        app = stack.container("app")
        readings = [(created, stack.start_read(created)) for created in waiting * 5]
        wait_for(lambda: figure(stack.client.get("/metrics").text, "quart_ots_kdf_queued") >= 25, PATIENCE)

        stack.compose("stop", "app")

        answers = [(created, reading.result()) for created, reading in readings]
        log = logged(app)
        assert inspect(app)["State"]["ExitCode"] == 0
        assert Counter(answer.status for _, answer in answers)[503] >= 10
        assert {answer.problem for _, answer in answers if answer.status == 503} == {"draining"}
        assert {answer.status for _, answer in answers} <= {200, 404, 503}
        assert "Traceback" not in log
        assert "unexpected" not in log
        stack.compose("start", "app")
        stack.wait_until_ready()
        for created in waiting:
            won = sum(answer.status == 200 for one, answer in answers if one is created)
            look = stack.client.get(f"/secrets/{created['secret_key']}")
            assert (won, look.status) in {(1, 404), (0, 200)}
            if not won:
                assert look.json()["attempts_left"] == 10
                assert stack.read(created).status == 200


def test_down_keeps_and_down_v_forgets(image: str) -> None:
    """`down` and `up` keep secrets and master key; `down -v` loses both, and the next log misleads nobody."""
    key_file = ("cat", "/app/instance/master.key")
    with Stack("volumes").running() as stack:
        kept, lost = stack.generate("kept"), stack.generate("lost")
        key = run("docker", "exec", stack.container("app"), *key_file)
        stack.compose("down")

        stack.up()
        assert stack.read(kept).json() == {"secret": "kept"}
        assert run("docker", "exec", stack.container("app"), *key_file) == key
        stack.compose("down", "-v")

        stack.up()
        assert stack.read(lost).status == 404
        assert run("docker", "exec", stack.container("app"), *key_file) != key
        log = logged(stack.container("app"))
        assert "ring lacks" not in log
        assert '"warning"' not in log


@pytest.fixture(scope="module")
def proxied(image: str) -> Iterator[Stack]:
    """Two apps behind nginx, both of which serve."""
    with Stack("proxy", *PROXY, port="PROXY_PORT", environment={"PUBLISH_PORT": "0"}).running(
        "--scale", "app=2"
    ) as stack:
        wait_for(lambda: all(serves(app, "/health/ready") for app in stack.containers("app")), PATIENCE)
        yield stack


def test_two_apps_behind_the_proxy(proxied: Stack) -> None:
    """Of 100 readers across two apps behind the proxy exactly one gets the secret."""
    for number in range(5):
        created = proxied.generate(f"round {number}")

        answers = [reading.result() for reading in [proxied.start_read(created) for _ in range(READERS)]]

        assert Counter(answer.status for answer in answers)[200] == 1
        assert {answer.status for answer in answers} <= {200, 404, 503}
        # With another key ring in each it would be unreadable-secret.
        assert {answer.problem for answer in answers if answer.status == 503} <= {"busy"}


def test_forged_addresses_gain_nothing(proxied: Stack) -> None:
    """What a client writes into X-Forwarded-For does not give it another budget: the proxy's own entry counts."""
    path = f"/receipts/{'a' * 43}"
    addresses = [f"198.51.100.{number}" for number in range(20)]

    answers = [proxied.client.get(path, headers={"X-Forwarded-For": address}) for address in addresses]

    assert min(int(answer.headers["RateLimit-Remaining"]) for answer in answers) < 595


@pytest.mark.parametrize(
    "path",
    ["/metrics", "//metrics", "/%6detrics", "/health/live", "/health/ready", "/docs", "/docs/docs.js", "/openapi.json"],
)
def test_proxy_keeps_the_operators_pages_inside(proxied: Stack, path: str) -> None:
    """Metrics, health and docs are for those who can ask an app itself."""
    answer = proxied.client.get(path)

    assert answer.status == 404
    assert "X-Request-ID" not in answer.headers  # which every answer of an app has


def test_proxy_finds_new_apps(proxied: Stack) -> None:
    """Apps that were made anew, with other addresses, are found without a restart of the proxy."""
    started = inspect(proxied.container("proxy"))["State"]["StartedAt"]

    proxied.compose("up", "-d", "--scale", "app=3", "--force-recreate", "--no-deps", "app")

    proxied.wait_until_steady()
    assert proxied.read(proxied.generate()).status == 200
    assert inspect(proxied.container("proxy"))["State"]["StartedAt"] == started


def test_secrets_as_files(image: str, tmp_path: Path) -> None:
    """With Docker secrets no password or key stands in a container's environment, and none is made."""
    files = {
        "mongodb_url": "mongodb://root:hunter2hunter2@mongo/quart_ots?authSource=admin\n",
        "mongo_password": "hunter2hunter2",
        "master_keys": draw_master_key() + "\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o444)
    stack = Stack("secrets", "docker-compose.yml", "docker-compose.secrets.yml", environment={"SECRETS": str(tmp_path)})

    with stack.running():
        assert stack.read(stack.generate()).status == 200
        for service in ("app", "mongo"):
            environment = str(inspect(stack.container(service))["Config"]["Env"])
            assert "hunter2" not in environment
            assert "not-secret" not in environment
        assert run("docker", "exec", stack.container("app"), "ls", "/app/instance") == ""


def test_hub_file_runs_an_image_without_a_checkout(image: str, tmp_path: Path) -> None:
    """The file for the published image needs no other file."""
    shutil.copy(ROOT / "docker-compose.hub.yml", tmp_path)
    stack = Stack("hub", "docker-compose.hub.yml", folder=tmp_path, environment={"QUART_OTS_IMAGE": image})

    with stack.running() as hub:
        assert hub.read(hub.generate()).status == 200


@pytest.mark.timeout(1800)
def test_suite_passes_in_containers() -> None:
    """The test compose file runs the suite against the mongo container, and returns pytest's status."""
    stack = Stack("suite", "docker-compose-test.yml")
    try:
        output = stack.compose("up", "--build", "--exit-code-from", "tests", "--no-color")
    finally:
        stack.compose("down", "-v")

    assert " passed" in output
    assert " failed" not in output
