"""What the service is compared with: the same routes on the same libraries, with nothing of its own.

A bare JSON POST, and the MongoDB commands of a create and of a read sent bare through Motor, on collections with the
same indexes, after one hash in a pool of threads. No envelope, no limits, no metrics, no log.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import bcrypt
from motor.motor_asyncio import AsyncIOMotorClient
from pydantic import BaseModel
from quart import Quart, Response, jsonify, request
from quart_schema import QuartSchema, validate_request, validate_response

from quart_ots.ops.database import OPTIONS

# As long as an envelope of the load's secret.
SEALED = bytes(1 + 8 + 29 + 12 + 255 + 16)


class Create(BaseModel):
    """As the service's request."""

    secret: str
    passphrase: str
    ttl: int = 604_800


class Created(BaseModel):
    """As the service's answer."""

    secret_key: str
    receipt_key: str
    expires_at: str


@dataclass
class CreateData:
    """The request as a dataclass, for which quart-schema has pydantic build a validator at each request."""

    secret: str
    passphrase: str
    ttl: int = 604_800


@dataclass
class CreatedData:
    """The answer as a dataclass."""

    secret_key: str
    receipt_key: str
    expires_at: str


class Read(BaseModel):
    """As the service's request."""

    passphrase: str


class Text(BaseModel):
    """As the service's answer."""

    secret: str


def create_app() -> Quart:
    """Build it, on the database and at the cost that the variables BARE_URL and BARE_COST name."""
    app = Quart(__name__)
    QuartSchema(app)
    salt = bcrypt.gensalt(int(os.environ.get("BARE_COST", "4")))
    pool = ThreadPoolExecutor(os.cpu_count())
    client: list[Any] = []

    @app.before_serving
    async def connect() -> None:
        database = AsyncIOMotorClient[dict[str, Any]](os.environ["BARE_URL"], **OPTIONS)["bare"]
        # As the service has them.
        await database.envelopes.create_index("expires_at", expireAfterSeconds=0)
        await database.secrets.create_index("purge_at", expireAfterSeconds=0)
        client.append(database)

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/plain")
    @validate_request(Create)
    @validate_response(Created)
    async def plain(data: Create) -> Created:
        return Created(secret_key="k" * 43, receipt_key="r" * 43, expires_at="2027-01-31T12:00:00.000Z")

    @app.post("/dataclasses")
    @validate_request(CreateData)
    @validate_response(CreatedData)
    async def dataclasses(data: CreateData) -> CreatedData:
        return CreatedData(secret_key="k" * 43, receipt_key="r" * 43, expires_at="2027-01-31T12:00:00.000Z")

    @app.post("/unvalidated")
    async def unvalidated() -> Response:
        await request.get_json()
        # A dict, returned as it is, would be validated too.
        return jsonify(secret_key="k" * 43, receipt_key="r" * 43, expires_at="2027-01-31T12:00:00.000Z")

    @app.post("/generate")
    @validate_request(Create)
    @validate_response(Created, 201)
    async def generate(data: Create) -> tuple[Created, int]:
        key, now = secrets.token_hex(32), datetime.now(UTC)
        await asyncio.get_running_loop().run_in_executor(pool, bcrypt.hashpw, b"a phrase", salt)
        over = now + timedelta(seconds=data.ttl)
        times = {"created_at": now, "expires_at": over, "ended_at": None, "purge_at": over}
        state = {"state": "pending", "attempts_left": 10, "attempted_at": None, "claim": None}
        await client[0].envelopes.insert_one({"_id": key, "sealed": SEALED, "key_id": "k" * 16, "expires_at": over})
        await client[0].secrets.insert_one({"_id": key, "receipt_id": key, **state, **times})
        return Created(secret_key=key, receipt_key=key, expires_at="2027-01-31T12:00:00.000Z"), 201

    @app.post("/secrets/<key>")
    @validate_request(Read)
    @validate_response(Text)
    async def read(key: str, data: Read) -> Text:
        now = datetime.now(UTC)
        waiting = {"_id": key, "state": "pending", "expires_at": {"$gt": now}, "attempts_left": {"$gt": 0}}
        await client[0].envelopes.find_one({"_id": key, "expires_at": {"$gt": now}}, {"_id": False, "sealed": True})
        taken = {"$inc": {"attempts_left": -1}, "$set": {"attempted_at": now}}
        assert (await client[0].secrets.update_one(waiting, taken)).matched_count
        await asyncio.get_running_loop().run_in_executor(pool, bcrypt.hashpw, b"a phrase", salt)
        claimed = {"$set": {"state": "read", "ended_at": now, "claim": "c" * 32}}
        await client[0].secrets.update_one({"_id": key, "state": "pending"}, claimed)
        await client[0].envelopes.delete_one({"_id": key})
        return Text(secret="s")

    return app
