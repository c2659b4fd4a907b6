"""docker-compose.cluster.yml: three members, two apps and nginx, made by one command; one of them may be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.docker.stack import PATIENCE, PROXY_ERRORS, UNLIMITED, Load, Stack, crash, inspect, kill, logged, run
from tests.mongod import wait_for

MEMBERS = ("mongo1", "mongo2", "mongo3")


@pytest.fixture(scope="module")
def cluster(image: str) -> Iterator[Stack]:
    """The cluster as `docker-compose -f docker-compose.cluster.yml up` starts it."""
    stack = Stack("cluster", "docker-compose.cluster.yml", port="PROXY_PORT", environment=UNLIMITED)
    with stack.running() as cluster:
        yield cluster


def primary(cluster: Stack) -> str | None:
    """Return the service that is the primary, None if no member says that it is."""
    for member in MEMBERS:
        hello = ("mongosh", "--quiet", "--eval", "db.adminCommand({hello: 1}).isWritablePrimary")
        if run("docker", "exec", cluster.container(member), *hello).lower() == "true":
            return member
    return None


def test_three_members_that_ask_who_comes(cluster: Stack) -> None:
    """The set has three members, each of which refuses clients without credentials."""
    stranger = (
        "import pymongo\nfor name in ('mongo1', 'mongo2', 'mongo3'):\n"
        "    client = pymongo.MongoClient(name, directConnection=True, serverSelectionTimeoutMS=5000)\n"
        "    try:\n        client.quart_ots.secrets.find_one()\n"
        "    except pymongo.errors.OperationFailure as error:\n"
        "        print(name, error.code, ','.join(sorted(client.admin.command('hello')['hosts'])))"
    )

    lines = run("docker", "exec", cluster.containers("app")[0], "python", "-c", stranger).splitlines()

    assert lines == [f"{name} 13 mongo1:27017,mongo2:27017,mongo3:27017" for name in MEMBERS]
    for member in MEMBERS:
        assert not any(inspect(cluster.container(member))["NetworkSettings"]["Ports"].values())


def test_apps_share_the_key(cluster: Stack) -> None:
    """What one app has sealed the other opens: of 20 secrets all are read, whichever app the proxy chose."""
    waiting = [creation.result().json() for creation in [cluster.start_generate() for _ in range(20)]]

    answers = [cluster.read(created) for created in waiting]

    assert {answer.status for answer in answers} == {200}
    assert len(cluster.containers("app")) == 2
    # Both were asked.
    assert all('"route": "/secrets/' in logged(app) for app in cluster.containers("app"))


@pytest.mark.parametrize("end", [crash, kill])
@pytest.mark.parametrize("victim", ["primary", "app"])
def test_killed_under_load(cluster: Stack, victim: str, end: Callable[[str], None]) -> None:
    """The primary or an app is killed under load: every acknowledged secret is read once, and none twice."""
    wait_for(lambda: primary(cluster), PATIENCE)

    with Load(cluster).running() as load:
        load.wait_for_more()
        killed = cluster.container(str(primary(cluster))) if victim == "primary" else cluster.containers("app")[0]
        end(killed)
        load.wait_for_more(50)

    assert set(load.statuses) <= {200, 201, 503} | PROXY_ERRORS
    wait_for(lambda: inspect(killed)["State"]["Running"], PATIENCE)
    cluster.wait_until_steady()
    load.check()


def test_down_and_up(cluster: Stack) -> None:
    """A second `up` finds the key file, the set and the secrets that the first has made."""
    created = cluster.generate("kept")
    cluster.compose("down")

    cluster.up()

    cluster.wait_until_steady()
    assert cluster.read(created).json() == {"secret": "kept"}
