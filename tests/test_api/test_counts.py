"""What the API does is counted, once each."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import REGISTRY
from pymongo.errors import AutoReconnect
from quart.typing import TestClientProtocol as Client

from tests.conftest import PHRASE, SECRET, Created, post, read
from tests.test_api.conftest import Intercept

CREATE = {"secret": SECRET, "passphrase": PHRASE}
STEPS = ("created", "read", "burned", "locked", "refused")
COMMANDS = ("find", "insert", "update", "delete")


def sample(name: str, **labels: str) -> float:
    """Return a figure, 0 where nothing was counted yet."""
    return REGISTRY.get_sample_value(f"quart_ots_{name}", labels) or 0


def steps() -> dict[str, float]:
    """Return how often each step in the life of a secret was counted."""
    return {step: sample("secrets_total", step=step) for step in STEPS}


def commands(metric: str) -> dict[str, float]:
    """Return what was counted of each kind of database command."""
    return {command: sample(f"database_{metric}", command=command) for command in COMMANDS}


async def test_steps_are_counted_once(client: Client) -> None:
    """Created, read, burned, locked and refused count what happened, once each, whatever is tried again."""
    before = steps()
    made = [Created(**await (await post(client, "/generate", CREATE)).get_json()) for _ in range(3)]

    for _ in range(2):
        await read(client, made[0].secret_key)
        await client.delete(f"/receipts/{made[1].receipt_key}")
    await asyncio.gather(*(read(client, made[2].secret_key, "wrong") for _ in range(12)))

    after = steps()
    counted = {step: after[step] - before[step] for step in STEPS}
    assert counted == {"created": 3, "read": 1, "burned": 1, "locked": 1, "refused": 10}


async def test_commands_are_counted(client: Client) -> None:
    """A create is two inserts, a read a find, two updates and a delete, and none of them fails."""
    before, failed = commands("command_duration_seconds_count"), commands("failures_total")

    answer = await post(client, "/generate", CREATE)
    await read(client, (await answer.get_json())["secret_key"])

    after = commands("command_duration_seconds_count")
    assert {name: after[name] - before[name] for name in COMMANDS} == {"find": 1, "insert": 2, "update": 2, "delete": 1}
    assert commands("failures_total") == failed


async def test_failed_commands_are_counted(client: Client, created: Created, intercept: Intercept) -> None:
    """A command that the database does not answer counts as failed, and is not measured; nor is its request served."""
    measured, failed = commands("command_duration_seconds_count"), commands("failures_total")
    unserved = sample("database_errors_total")

    async def fail(*_: Any, **__: Any) -> None:
        raise AutoReconnect

    intercept("envelopes", "find_one", fail)

    assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 503

    assert commands("failures_total") == {**failed, "find": failed["find"] + 1}
    assert commands("command_duration_seconds_count") == measured
    assert sample("database_errors_total") == unserved + 1
