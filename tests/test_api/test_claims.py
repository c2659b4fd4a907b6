"""One reader alone gets a secret, whatever happens to the others, to the connections and to the database."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, NetworkTimeout
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots.vault.store import Envelope
from tests.conftest import PHRASE, SECRET, Clock, Created, read, receipt
from tests.test_api.conftest import Act, Gate, Intercept, check_problem, finish, hang_up

RIGHT = {"passphrase": PHRASE}
WRONG = {"passphrase": "wrong"}


def is_claim(update: dict[str, Any]) -> bool:
    """Return whether an update makes somebody the reader."""
    return bool(update.get("$set", {}).get("state") == "read")


@pytest.mark.parametrize("settings", [{"kdf_threads": 10}], indirect=True)
async def test_claim_is_won_once(client: Client, created: Created, gate: Gate) -> None:
    """Of several who have opened a secret, one gets it, and the others are told that there is none."""
    gate.close()
    reading = asyncio.gather(*(read(client, created.secret_key) for _ in range(10)))
    await gate.reached(10)
    gate.open()

    answers = await reading

    assert Counter(answer.status_code for answer in answers) == {200: 1, 404: 9}
    assert (await receipt(client, created))["state"] == "read"


@pytest.mark.parametrize("reached", [True, False], ids=["reply lost", "command lost"])
@pytest.mark.parametrize("error", [AutoReconnect, NetworkTimeout])
async def test_claim_whose_connection_broke(
    client: Client, created: Created, intercept: Intercept, error: type[Exception], reached: bool
) -> None:
    """A reader whose claim lost its connection gets the secret, whether or not the command had arrived."""
    broken: list[dict[str, Any]] = []

    async def break_once(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if not is_claim(update) or broken:
            return await command(condition, update)
        broken.append(update)
        if reached:
            await command(condition, update)
        raise error("cut")

    intercept("secrets", "update_one", break_once)

    answer = await read(client, created.secret_key)

    assert broken
    assert await answer.get_json() == {"secret": SECRET}
    assert (await receipt(client, created))["state"] == "read"


async def test_claim_that_the_driver_made_twice(client: Client, created: Created, intercept: Intercept) -> None:
    """A claim that the driver makes again, on a server that forgot the first, is the reader's all the same."""
    made: list[dict[str, Any]] = []

    async def make_twice(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if is_claim(update) and not made:
            made.append(update)
            await command(condition, update)
        return await command(condition, update)

    intercept("secrets", "update_one", make_twice)

    answer = await read(client, created.secret_key)

    assert made
    assert await answer.get_json() == {"secret": SECRET}


async def test_claim_lost_while_the_connection_was_broken(
    client: Client, created: Created, intercept: Intercept
) -> None:
    """A reader whose claim lost its connection does not take another's claim for its own."""
    broken: list[dict[str, Any]] = []

    async def lose_to_another(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if is_claim(update) and not broken:
            broken.append(update)
            await command(condition, {"$set": {"state": "read", "claim": "another"}})
            raise AutoReconnect("cut")
        return await command(condition, update)

    intercept("secrets", "update_one", lose_to_another)

    answer = await read(client, created.secret_key)

    assert broken
    assert answer.status_code == 404


async def test_claim_that_can_not_be_settled(
    client: Client, created: Created, intercept: Intercept, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim that can't be settled answers 503 and when to come back; the log has no message of the driver's."""

    async def fail(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if is_claim(update):
            raise AutoReconnect(f"the driver quotes {created.secret_key}")
        return await command(condition, update)

    intercept("secrets", "update_one", fail)

    answer = await read(client, created.secret_key)

    await check_problem(answer, 503, "database-unavailable")
    assert "the database failed: AutoReconnect" in caplog.text
    assert "a claim is in doubt" in caplog.text
    assert created.secret_key not in caplog.text


async def test_envelope_that_was_not_deleted(
    client: Client, created: Created, intercept: Intercept, caplog: pytest.LogCaptureFixture
) -> None:
    """A secret that was claimed is answered even if its envelope can't be deleted; its TTL will."""

    async def fail(*_: Any) -> None:
        raise AutoReconnect("cut")

    intercept("envelopes", "delete_one", fail)

    answer = await read(client, created.secret_key)

    assert await answer.get_json() == {"secret": SECRET}
    assert "left to its TTL" in caplog.text
    assert (await read(client, created.secret_key)).status_code == 404


async def test_reader_who_hangs_up_before_the_claim(app: Quart, client: Client, created: Created, gate: Gate) -> None:
    """A right reader whose connection breaks while the key is stretched loses nothing, and can come back."""
    gate.close()
    sent = await hang_up(app, f"/secrets/{created.secret_key}", RIGHT, gate.reached())
    gate.open()

    await finish(app)

    assert sent == []
    assert (await receipt(client, created))["attempts_left"] == 10
    assert await (await read(client, created.secret_key)).get_json() == {"secret": SECRET}


async def test_reader_who_hangs_up_on_the_last_attempt(
    app: Quart, client: Client, created: Created, gate: Gate
) -> None:
    """The last attempt is not given back: whoever was told that the secret is locked was told the truth."""
    for _ in range(9):
        await read(client, created.secret_key, "wrong")
    gate.close()
    sent = await hang_up(app, f"/secrets/{created.secret_key}", RIGHT, gate.reached())
    before = await receipt(client, created)
    gate.open()

    await finish(app)

    assert sent == []
    assert (await receipt(client, created))["state"] == before["state"] == "locked"
    assert (await read(client, created.secret_key)).status_code == 404


async def test_reader_who_hangs_up_after_the_claim(
    app: Quart, client: Client, created: Created, intercept: Intercept
) -> None:
    """A claim goes on to its end when its client hangs up in the middle: the envelope is deleted."""
    claimed, gone = asyncio.Event(), asyncio.Event()

    async def delete_late(command: Act, condition: dict[str, Any]) -> Any:
        claimed.set()
        await gone.wait()
        return await command(condition)

    intercept("envelopes", "delete_one", delete_late)
    sent = await hang_up(app, f"/secrets/{created.secret_key}", RIGHT, claimed.wait())
    gone.set()

    await finish(app)

    assert sent == []
    assert await Envelope.count() == 0
    assert (await receipt(client, created))["state"] == "read"


@pytest.mark.parametrize(("reached", "state"), [(True, "read"), (False, "pending")], ids=["reply lost", "command lost"])
async def test_reader_who_hangs_up_while_the_claim_is_in_doubt(
    app: Quart, client: Client, created: Created, intercept: Intercept, reached: bool, state: str
) -> None:
    """A claim in doubt is settled for a client that is gone, but not made: the secret can still be read."""
    claiming, gone = asyncio.Event(), asyncio.Event()

    async def break_once(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if not is_claim(update) or claiming.is_set():
            return await command(condition, update)
        claiming.set()
        if reached:
            await command(condition, update)
        await gone.wait()
        raise AutoReconnect("cut")

    intercept("secrets", "update_one", break_once)
    sent = await hang_up(app, f"/secrets/{created.secret_key}", RIGHT, claiming.wait())
    gone.set()

    await finish(app)

    assert sent == []
    assert (await receipt(client, created))["state"] == state
    assert (await read(client, created.secret_key)).status_code == (404 if reached else 200)


async def test_claim_that_arrives_after_its_client_has_gone(
    app: Quart, client: Client, created: Created, intercept: Intercept
) -> None:
    """A claim that was given up for a client that is gone finds nothing when it reaches the database after all."""
    claiming, gone = asyncio.Event(), asyncio.Event()
    late: list[Callable[[], Awaitable[Any]]] = []

    async def delay_once(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if not is_claim(update) or late:
            return await command(condition, update)
        late.append(functools.partial(command, condition, update))
        claiming.set()
        await gone.wait()
        raise NetworkTimeout("slow")

    intercept("secrets", "update_one", delay_once)
    sent = await hang_up(app, f"/secrets/{created.secret_key}", RIGHT, claiming.wait())
    gone.set()
    await finish(app)

    result = await late[0]()

    assert sent == []
    assert result.matched_count == 0
    assert await (await read(client, created.secret_key)).get_json() == {"secret": SECRET}


async def test_guesser_who_hangs_up(app: Quart, client: Client, created: Created, gate: Gate) -> None:
    """A guess whose client hangs up while it is judged counts like any other, up to locking the secret."""
    for _ in range(10):
        gate.close()
        assert await hang_up(app, f"/secrets/{created.secret_key}", WRONG, gate.reached()) == []
        gate.open()
        await finish(app)

    assert (await receipt(client, created))["state"] == "locked"
    assert await Envelope.count() == 0


async def test_creator_who_hangs_up(app: Quart, client: Client, created: Created, gate: Gate) -> None:
    """Nothing is stored for a creator who is gone before the keys could be answered."""
    gate.close()
    body = {"secret": SECRET, "passphrase": PHRASE}
    sent = await hang_up(app, "/generate", body, gate.reached())
    gate.open()

    await finish(app)

    assert sent == []
    assert await Envelope.count() == 1  # the one created before


@pytest.mark.parametrize("guesses", [0, 9], ids=["first attempt", "last attempt"])
@pytest.mark.parametrize("late", [False, True], ids=["in time", "expired"])
async def test_burn_while_a_reader_is_under_way(
    client: Client, created: Created, clock: Clock, gate: Gate, guesses: int, late: bool
) -> None:
    """What a burn answers stays true: a right reader whose key was being stretched gets nothing."""
    for _ in range(guesses):
        await read(client, created.secret_key, "wrong")
    gate.close()
    reading = asyncio.ensure_future(read(client, created.secret_key))
    await gate.reached()
    clock.forward(3600 if late else 1)

    burn = await client.delete(f"/receipts/{created.receipt_key}")
    gate.open()

    told = (await burn.get_json(force=True))["state"]
    assert told == ("locked" if guesses else "expired" if late else "burned")
    assert burn.status_code == (200 if told == "burned" else 409)
    assert (await reading).status_code == 404
    assert (await receipt(client, created))["state"] == told


async def test_burn_that_a_reader_beats(client: Client, created: Created, intercept: Intercept, gate: Gate) -> None:
    """Where the reader on the last attempt claims before the burn could write that it is locked, the burn says read."""
    for _ in range(9):
        await read(client, created.secret_key, "wrong")
    gate.close()
    reading = asyncio.ensure_future(read(client, created.secret_key))
    await gate.reached()

    async def let_the_reader_first(command: Act, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if update["$set"]["state"] == "locked":
            gate.open()
            await asyncio.wait([reading])
        return await command(condition, update)

    intercept("secrets", "update_one", let_the_reader_first)

    burn = await client.delete(f"/receipts/{created.receipt_key}")

    assert await (await reading).get_json() == {"secret": SECRET}
    problem = await check_problem(burn, 409, "already-ended")
    assert problem["state"] == (await receipt(client, created))["state"] == "read"
