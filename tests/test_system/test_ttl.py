"""What is over disappears from the database by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.mongod import wait_for
from tests.service import Service
from tests.test_system.conftest import Database


def test_reaper_removes_what_is_over(service: Service, mongod: Database) -> None:
    """The database deletes envelopes past expires_at and secrets past purge_at, and keeps the others."""
    waiting = service.generate()
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    with mongod.client() as client:
        secrets, envelopes = (client.get_default_database()[name] for name in ("secrets", "envelopes"))
        envelopes.insert_one({"_id": "over", "expires_at": past})
        secrets.insert_one({"_id": "over", "expires_at": past, "purge_at": past})
        secrets.insert_one({"_id": "expired", "expires_at": past, "purge_at": future})

        wait_for(lambda: not envelopes.find_one("over") and not secrets.find_one("over"), 100)

        assert secrets.delete_one({"_id": "expired"}).deleted_count == 1
    assert service.read(waiting["secret_key"]).status == 200


def test_receipt_outlives_its_secret(service: Service, mongod: Database) -> None:
    """A secret is reaped at its end, and its receipt then says so: it expired when it was to."""
    created = service.generate(ttl=60)
    with mongod.client() as client:
        database = client.get_default_database()
        kept = database.secrets.find_one({"expires_at": datetime.fromisoformat(created["expires_at"])})
        assert kept is not None
        over = {"$set": {"expires_at": kept["created_at"]}}  # as if the minute had passed
        database.secrets.update_one({"_id": kept["_id"]}, over)
        database.envelopes.update_one({"_id": kept["lookup_id"]}, over)

        wait_for(lambda: database.envelopes.find_one(kept["lookup_id"]) is None, 100)

    receipt = service.receipt(created["receipt_key"])
    assert receipt["state"] == "expired"
    assert receipt["ended_at"] == receipt["expires_at"]
    assert service.read(created["secret_key"]).status == 404


def test_no_index_but_the_two_that_reap(service: Service, mongod: Database) -> None:
    """Each collection has _id and its TTL index: a sharded MongoDB would refuse another unique one."""
    with mongod.client() as client:
        database = client.get_default_database()
        keys = {
            name: [(list(index["key"]), index.get("expireAfterSeconds")) for index in database[name].list_indexes()]
            for name in ("secrets", "envelopes")
        }

    assert keys == {
        "secrets": [(["_id"], None), (["purge_at"], 0)],
        "envelopes": [(["_id"], None), (["expires_at"], 0)],
    }
