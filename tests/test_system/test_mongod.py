"""The suite's own MongoDB: that its faults are what they are called."""

from __future__ import annotations

from collections.abc import Iterator

import pymongo
import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure, PyMongoError, WTimeoutError

from tests.mongod import DATABASE, Client, Mongod, ReplicaSet, disarm, failing_nth, failpoint, hello, wait_for

pytestmark = pytest.mark.own_database


@pytest.fixture(scope="module")
def replica_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """Run a set whose members can be cut off."""
    with ReplicaSet(tmp_path_factory.mktemp("set"), partitions=True) as replica_set:
        yield replica_set


@pytest.fixture
def whole(replica_set: ReplicaSet) -> ReplicaSet:
    """Mend the set after the test before."""
    for member in replica_set.members:
        if not member.running:
            member.start()
    replica_set.heal()
    replica_set.wait_until_whole()
    return replica_set


@pytest.fixture(scope="module")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Run a standalone."""
    with Mongod(tmp_path_factory.mktemp("standalone")) as mongod:
        yield mongod


def test_standalone_is_killed_and_paused(mongod: Mongod) -> None:
    """What was acknowledged is there after kill -9, under the same URL; a paused one does not answer."""
    concern = pymongo.WriteConcern("majority", j=True)
    with Client(mongod.url, socketTimeoutMS=500) as client:
        collection = client[DATABASE].get_collection("survivors", write_concern=concern)
        collection.insert_one({"_id": 1})

        mongod.kill()
        mongod.start()

        assert collection.find_one() == {"_id": 1}
        mongod.pause()
        with pytest.raises(AutoReconnect):
            client.admin.command("hello")
        mongod.resume()
        assert collection.find_one() == {"_id": 1}


def test_standalone_is_stopped(mongod: Mongod) -> None:
    """SIGTERM ends it with status 0."""
    assert mongod.stop() == 0
    mongod.start()


def test_strangers_are_refused(whole: ReplicaSet) -> None:
    """The set asks for a password, on loopback too."""
    with Client(whole.members[0].url) as stranger, pytest.raises(OperationFailure, match="auth"):
        stranger[DATABASE].secrets.find_one()


def test_primary_is_killed(whole: ReplicaSet) -> None:
    """Another member is elected, has what was acknowledged, and the dead one comes back."""
    with whole.client(w="majority") as client:
        client[DATABASE].survivors.insert_one({"_id": "kill"})
        primary = whole.wait_for_primary()

        primary.kill()

        whole.wait_for_primary(other_than=primary, seconds=15)
        assert client[DATABASE].survivors.find_one({"_id": "kill"})
        primary.start()
        whole.wait_until_whole()


def test_primary_steps_down(whole: ReplicaSet) -> None:
    """Another member is elected, and no process has ended."""
    primary = whole.step_down()

    assert whole.wait_for_primary(other_than=primary) is not primary
    assert all(member.running for member in whole.members)


def test_partition_leaves_the_old_primary_alone(whole: ReplicaSet) -> None:
    """Cut off from the others, the primary still takes its clients' writes, confirms none, and loses them."""
    old = whole.wait_for_primary()
    with Client(
        f"mongodb://{whole.hosts[whole.members.index(old)]}/?directConnection=true",
        username=whole.credentials[0],
        password=whole.credentials[1],
        retryWrites=False,
    ) as client:
        collection = client[DATABASE].lonely
        collection.insert_one({"_id": "before"})

        whole.partition(old)

        unconfirmed = collection.with_options(write_concern=pymongo.WriteConcern(1))
        unconfirmed.insert_one({"_id": "lost"})
        assert hello(old)["isWritablePrimary"]
        with pytest.raises(WTimeoutError):
            collection.with_options(write_concern=pymongo.WriteConcern("majority", wtimeout=500)).insert_one({})
        assert whole.wait_for_primary(other_than=old, seconds=15) is not old
        wait_for(lambda: not hello(old).get("isWritablePrimary"), 15)
        assert unconfirmed.with_options(read_preference=pymongo.ReadPreference.SECONDARY).find_one({"_id": "lost"})
        whole.heal()
        whole.wait_until_whole()
    with whole.client() as client:
        assert [one["_id"] for one in client[DATABASE].lonely.find()] == ["before"]


def test_partition_from_clients(whole: ReplicaSet) -> None:
    """Cut off from clients alone, the primary stays it, and what they wait for goes on when it is healed."""
    primary = whole.wait_for_primary()
    with whole.client(serverSelectionTimeoutMS=500, socketTimeoutMS=500, connectTimeoutMS=500) as client:
        client.admin.command("ping")

        whole.partition(primary, members=False, clients=True)

        with pytest.raises(PyMongoError):
            client[DATABASE].survivors.insert_one({})
        assert whole.primary() is primary
        whole.heal(primary)

        def writable() -> bool:
            try:
                return client[DATABASE].survivors.insert_one({}).acknowledged
            except PyMongoError:
                return False

        wait_for(writable)


def test_failpoint(whole: ReplicaSet) -> None:
    """A command fails as often as asked, for the service's connections alone."""
    primary = whole.wait_for_primary()
    with whole.client(primary) as admin, whole.client(appname=DATABASE, retryReads=False) as client:
        failpoint(admin, ["find"], {"errorCode": 50}, times=1)

        assert admin[DATABASE].none.find_one() is None
        with pytest.raises(ExecutionTimeout):
            client[DATABASE].none.find_one()
        assert client[DATABASE].none.find_one() is None
        disarm(admin)


@pytest.mark.parametrize("retry", [False, True], ids=["no retry", "retry"])
def test_second_command_fails(whole: ReplicaSet, retry: bool) -> None:
    """The one before and the ones after pass, and so does the driver's retry."""
    primary = whole.wait_for_primary()
    data = {"errorCode": 10107, "errorLabels": ["RetryableWriteError"]}
    with whole.client(primary) as admin, whole.client(appname=DATABASE, retryWrites=retry) as client:
        before = disarm(admin)
        answers = []

        with failing_nth(admin, "insert", 1, data):
            for _ in range(3):
                try:
                    answers.append(client[DATABASE].inserted.insert_one({}).acknowledged)
                except AutoReconnect:
                    answers.append(False)

        assert answers == [True, retry, True]
        assert disarm(admin) == before + 1
