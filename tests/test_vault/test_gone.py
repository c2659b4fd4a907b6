"""Nobody waits for the answer any more: the client hung up, or the server dropped the request. Nothing is lost then."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from mongomock_motor import AsyncMongoMockCollection
from pymongo.errors import AutoReconnect
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots.api import routes
from quart_ots.vault import crypto, life, store
from quart_ots.vault.errors import ClientGoneError, DatabaseUnavailableError, SecretNotFoundError, WrongPassphraseError
from quart_ots.vault.life import Services
from quart_ots.vault.store import Envelope
from tests.asgi import Call
from tests.conftest import PHRASE, SECRET, Clock, Created, read

BODY = json.dumps({"passphrase": PHRASE}).encode()
ONE_THREAD = pytest.mark.parametrize("settings", [{"kdf_threads": 1, "kdf_queue": 10}], indirect=True)


@pytest.fixture
def services(app: Quart) -> Services:
    """What the app works with."""
    services: Services = app.extensions[routes.EXTENSION]
    return services


@pytest.fixture
async def gone() -> asyncio.Future[None]:
    """What says that nobody waits any more: not yet."""
    return asyncio.get_running_loop().create_future()


@pytest.fixture
async def busy(services: Services, created: Created) -> AsyncIterator[threading.Event]:
    """The pool's threads hash something else until this is set. A slot can still be had."""
    release = threading.Event()
    others = [asyncio.ensure_future(services.pool.run(release.wait)) for _ in range(services.pool.threads)]
    yield release
    release.set()
    await asyncio.gather(*others)


async def attempts_left(services: Services, created: Created) -> int:
    """Return how many attempts are left."""
    return (await life.receipt(services, created.receipt_key)).attempts_left


async def until_hashing(services: Services, created: Created, attempts: int = 9) -> None:
    """Return when a reading has taken its attempt, and so has its slot."""
    while await attempts_left(services, created) > attempts:
        await asyncio.sleep(0)


async def check_readable(services: Services, created: Created, attempts: int) -> None:
    """Check that a secret waits with so many attempts, and that it can be read."""
    receipt = await life.receipt(services, created.receipt_key)
    assert (receipt.state, receipt.attempts_left) == ("pending", attempts)
    assert await life.read(services, created.secret_key, PHRASE, asyncio.get_running_loop().create_future()) == SECRET


@ONE_THREAD
@pytest.mark.parametrize("end", ["gone", "cancelled"])
async def test_gone_while_waiting(services: Services, created: Created, gone: asyncio.Future[None], end: str) -> None:
    """A reading that waits for a slot holds nothing: no attempt, and nothing that its end could lose."""
    waits_for_nobody = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as slots:
        for _ in range(2):  # the thread's, and a spare one
            await slots.enter_async_context(services.pool.slot(waits_for_nobody))
        reading = asyncio.ensure_future(life.read(services, created.secret_key, PHRASE, gone))
        await asyncio.wait([reading], timeout=0.01)
        assert await attempts_left(services, created) == 10

        if end == "gone":
            gone.set_result(None)
        else:
            reading.cancel()
        with pytest.raises(ClientGoneError if end == "gone" else asyncio.CancelledError):
            await reading

    await check_readable(services, created, attempts=10)


async def test_gone_before_it_began(services: Services, created: Created, gone: asyncio.Future[None]) -> None:
    """Nothing is begun for a client that is gone already."""
    gone.set_result(None)

    with pytest.raises(ClientGoneError):
        await life.read(services, created.secret_key, PHRASE, gone)
    with pytest.raises(ClientGoneError):
        await life.create(services, SECRET, PHRASE, 60, gone)

    assert await Envelope.count() == 1
    await check_readable(services, created, attempts=10)


@ONE_THREAD
async def test_gone_while_hashing(
    services: Services, created: Created, busy: threading.Event, gone: asyncio.Future[None]
) -> None:
    """A right reading whose client goes while it is judged claims nothing, and costs nothing."""
    reading = asyncio.ensure_future(life.read(services, created.secret_key, PHRASE, gone))
    await until_hashing(services, created)

    gone.set_result(None)
    busy.set()
    with pytest.raises(ClientGoneError):
        await reading

    await check_readable(services, created, attempts=10)


@ONE_THREAD
async def test_wrong_guess_gone_while_hashing(
    services: Services, created: Created, busy: threading.Event, gone: asyncio.Future[None]
) -> None:
    """A wrong guess counts, whether or not anybody waits for the verdict: hanging up buys no attempts."""
    guessing = asyncio.ensure_future(life.read(services, created.secret_key, "wrong", gone))
    await until_hashing(services, created)

    gone.set_result(None)
    busy.set()
    with pytest.raises(WrongPassphraseError) as wrong:
        await guessing

    assert wrong.value.attempts_left == 9
    await check_readable(services, created, attempts=9)


@ONE_THREAD
async def test_creation_gone_while_hashing(
    services: Services, busy: threading.Event, gone: asyncio.Future[None]
) -> None:
    """Nothing is stored of a secret whose keys nobody would get."""
    creation = asyncio.ensure_future(life.create(services, SECRET, PHRASE, 60, gone))
    await asyncio.wait([creation], timeout=0.01)

    gone.set_result(None)
    busy.set()
    with pytest.raises(ClientGoneError):
        await creation

    assert await Envelope.count() == 1  # the one that the fixture made


class Cut:
    """A connection to the database that breaks at one update.

    Args:
        monkeypatch: For the time of the test.
        reached: Whether the command arrived, so that its reply alone is lost.
        gone: Set in the moment in which it breaks.

    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reached: bool, gone: asyncio.Future[None] | None) -> None:
        self.times = 1
        update_one = AsyncMongoMockCollection.update_one

        async def update(collection: Any, condition: Any, change: Any) -> Any:
            if not self.times:
                return await update_one(collection, condition, change)
            self.times -= 1
            if reached:
                await update_one(collection, condition, change)
            if gone is not None and not gone.done():
                gone.set_result(None)
            raise AutoReconnect("cut")

        monkeypatch.setattr(AsyncMongoMockCollection, "update_one", update)
        monkeypatch.setattr(store, "CLAIM_PAUSE", 0)


async def state(services: Services, created: Created) -> str:
    """Return the state of a secret."""
    return (await life.receipt(services, created.receipt_key)).state


async def test_claim_for_who_is_gone(services: Services, created: Created, clock: Clock, gone: Any) -> None:
    """No claim is made for a client that is gone, and one by its id that arrives later is denied."""
    secret_id = crypto.receipt_id(created.receipt_key)
    gone.set_result(None)

    with pytest.raises(ClientGoneError):
        await store.claim(secret_id, "c1", clock(), gone)
    with pytest.raises(SecretNotFoundError):
        await store.claim(secret_id, "c1", clock(), asyncio.get_running_loop().create_future())

    await check_readable(services, created, attempts=10)


@pytest.mark.parametrize("reached", [True, False], ids=["reply lost", "command lost"])
@pytest.mark.parametrize("leaves", [True, False], ids=["gone", "there"])
async def test_claim_in_doubt(
    services: Services,
    created: Created,
    clock: Clock,
    gone: asyncio.Future[None],
    monkeypatch: pytest.MonkeyPatch,
    reached: bool,
    leaves: bool,
) -> None:
    """A claim whose reply was lost is settled, for whomever; it is made anew only for a client that is still there."""
    Cut(monkeypatch, reached, gone if leaves else None)
    claim = store.claim(crypto.receipt_id(created.receipt_key), "c1", clock(), gone)

    if leaves and not reached:
        with pytest.raises(ClientGoneError):
            await claim
        await check_readable(services, created, attempts=10)
    else:
        await claim
        assert await state(services, created) == "read"


async def test_claim_that_is_never_settled(
    services: Services, created: Created, clock: Clock, gone: asyncio.Future[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim is given up after some tries, and then nobody is told that it was made."""
    cut = Cut(monkeypatch, True, None)
    cut.times = 1000

    with pytest.raises(DatabaseUnavailableError):
        await store.claim(crypto.receipt_id(created.receipt_key), "c1", clock(), gone)

    assert 1000 - cut.times == store.CLAIM_TRIES


@ONE_THREAD
async def test_drop_while_hashing(app: Quart, services: Services, created: Created, busy: threading.Event) -> None:
    """A reading that the server drops in mid-hash claims nothing, and its client is told that the server goes."""
    call = Call(app, "POST", f"/secrets/{created.secret_key}", BODY)
    await until_hashing(services, created)

    call.drop()
    await asyncio.sleep(0)
    call.drop()
    busy.set()
    await call.end()

    assert (call.status, call.json["type"]) == (503, "urn:quart-ots:problem:draining")
    assert call.headers["content-type"] == "application/problem+json"
    assert call.headers["retry-after"] == "2"
    assert call.task.cancelled()
    await check_readable(services, created, attempts=10)


@ONE_THREAD
async def test_drop_while_waiting(app: Quart, services: Services, created: Created, busy: threading.Event) -> None:
    """A reading that the server drops while it waits for a slot is told so at once, whatever is hashed meanwhile."""
    calls = [Call(app, "POST", f"/secrets/{created.secret_key}", BODY) for _ in range(3)]
    await until_hashing(services, created, attempts=8)  # the thread is another's: two have slots, one waits

    calls[2].drop()
    await calls[2].end()

    assert (calls[2].status, calls[2].json["type"]) == (503, "urn:quart-ots:problem:draining")
    assert await attempts_left(services, created) == 8
    busy.set()
    await asyncio.gather(*(call.end() for call in calls))
    assert sorted(call.status for call in calls) == [200, 404, 503]


@ONE_THREAD
async def test_drop_of_a_creation(app: Quart, services: Services, created: Created, busy: threading.Event) -> None:
    """A creation that the server drops in mid-hash stores nothing, and its client is told so."""
    call = Call(app, "POST", "/generate", json.dumps({"secret": SECRET, "passphrase": PHRASE}).encode())
    await asyncio.wait([call.task], timeout=0.01)

    call.drop()
    busy.set()
    await call.end()

    assert (call.status, call.json["type"]) == (503, "urn:quart-ots:problem:draining")
    assert await Envelope.count() == 1


async def test_drop_of_a_burn(
    app: Quart, services: Services, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burn that the server drops is done, and its client is told so: it loses nothing to anyone."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    update_one = AsyncMongoMockCollection.update_one

    async def update(*args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await update_one(*args)

    monkeypatch.setattr(AsyncMongoMockCollection, "update_one", update)
    call = Call(app, "DELETE", f"/receipts/{created.receipt_key}", b"")
    await begun.wait()

    call.drop()
    await asyncio.sleep(0)
    go_on.set()
    await call.end()

    assert (call.status, call.json["state"]) == (200, "burned")
    assert await state(services, created) == "burned"


@ONE_THREAD
@pytest.mark.parametrize("seed", range(30))
async def test_whoever_is_not_answered_can_still_read(
    app: Quart, client: Client, services: Services, created: Created, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of several readers, dropped at whatever moment, one at most is answered 200; if none is, the secret waits."""
    chance = random.Random(seed)
    for name in ("find_one", "update_one", "delete_one"):
        real = getattr(AsyncMongoMockCollection, name)

        async def take_time(self: Any, *args: Any, real: Any = real, **more: Any) -> Any:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            result = await real(self, *args, **more)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            return result

        monkeypatch.setattr(AsyncMongoMockCollection, name, take_time)
    calls = [Call(app, "POST", f"/secrets/{created.secret_key}", BODY) for _ in range(4)]
    await asyncio.sleep(0)  # what is dropped before the app sees it is the server's to answer

    for call in chance.sample(calls, 4 - seed % 2):
        await asyncio.sleep(chance.choice([0, 0.0005, 0.001, 0.002, 0.004, 0.008]))
        call.drop()
    await asyncio.gather(*(call.end() for call in calls))

    answers = sorted(call.status for call in calls)
    assert set(answers) <= {200, 404, 503}
    assert answers.count(200) <= 1
    assert all(call.json == {"secret": SECRET} for call in calls if call.status == 200)
    assert 404 not in answers or 200 in answers
    was_read = 200 in answers
    assert await state(services, created) == ("read" if was_read else "pending")
    assert (await read(client, created.secret_key)).status_code == (404 if was_read else 200)
