"""The API in process: each call, each status, each step of a secret's life."""

import asyncio
import hashlib
import json
import os
import sys
from datetime import timedelta
from typing import Any

import pytest
from beanie import Document
from pymongo.errors import AutoReconnect, NetworkTimeout
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import crypto, models
from quart_ots.errors import BusyError, SecretNotFoundError
from quart_ots.kdf import NICENESS, KdfPool
from tests.conftest import SECRET, Clock, Created, post, read, receipt
from tests.service import PHRASE

NOT_FOUND = "a" * 43


async def test_generate_answers_with_keys_and_expiry(client: Client) -> None:
    """A creator gets two keys, and the time to the millisecond in UTC when the secret expires: in 7 days."""
    answer = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE})

    assert answer.status_code == 201
    body = await answer.get_json()
    assert set(body) == {"secret_key", "receipt_key", "expires_at"}
    assert crypto.is_key(body["secret_key"])
    assert crypto.is_key(body["receipt_key"])
    assert body["expires_at"] == "2100-02-07T12:00:00.000Z"


@pytest.mark.parametrize(
    "secret",
    ["s", " \t", "a\r\nb\rc\n", "nul \0 end", "\U0001f511 é e\u0301 \u202e", "\ufeffbom", "x" * 65_536, "\0" * 65_536],
    ids=["one byte", "white space", "line ends", "NUL", "emoji", "BOM", "64 KiB", "64 KiB, each byte escaped"],
)
async def test_secret_comes_back_to_the_byte(client: Client, secret: str) -> None:
    """A secret is read as it was sent: nothing trimmed, normalised or cut."""
    answer = await post(client, "/generate", {"secret": secret, "passphrase": PHRASE})
    key = (await answer.get_json())["secret_key"]

    answer = await read(client, key)

    assert (await answer.get_json()) == {"secret": secret}


async def test_read_twice(client: Client, created: Created) -> None:
    """The second reader is told the same as one with a made-up key."""
    await read(client, created.secret_key)
    stranger = await read(client, NOT_FOUND)

    second = await read(client, created.secret_key)

    assert second.status_code == 404
    assert await second.get_data() == await stranger.get_data()


async def test_all_that_is_gone_looks_the_same(client: Client, clock: Clock) -> None:
    """Unknown, read, burned, locked and expired secrets, and paths that hold no key, answer the same to the byte."""

    async def create() -> Created:
        answer = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE, "ttl": 60})
        return Created(**await answer.get_json())

    was_read, burned, locked, expired = [await create() for _ in range(4)]
    await read(client, was_read.secret_key)
    await client.delete(f"/receipts/{burned.receipt_key}")
    for _ in range(10):
        await read(client, locked.secret_key, "wrong")
    clock.forward(60)
    keys = [NOT_FOUND, "short", "%F0%9F%94%91", *(c.secret_key for c in (was_read, burned, locked, expired))]

    posts = [await read(client, key) for key in keys]
    gets = [await client.get(f"/secrets/{key}") for key in keys]

    assert {answer.status_code for answer in [*posts, *gets]} == {404}
    assert len({await answer.get_data() for answer in [*posts, *gets]}) == 1


async def test_wrong_passphrase_counts_down_and_locks(client: Client, created: Created, app: Quart) -> None:
    """Ten wrong passphrases lock a secret for the right one too, and its envelope is deleted."""
    answers = [await read(client, created.secret_key, "wrong") for _ in range(10)]

    assert {answer.status_code for answer in answers} == {403}
    assert [(await answer.get_json())["attempts_left"] for answer in answers] == list(range(9, -1, -1))
    assert (await read(client, created.secret_key)).status_code == 404
    assert await models.Envelope.count() == 0
    assert (await receipt(client, created))["state"] == "locked"


async def test_right_passphrase_on_the_last_attempt(client: Client, created: Created) -> None:
    """Nine wrong guesses leave one for the reader."""
    for _ in range(9):
        await read(client, created.secret_key, "wrong")

    answer = await read(client, created.secret_key)

    assert (await answer.get_json()) == {"secret": SECRET}
    assert (await receipt(client, created))["state"] == "read"


async def test_passphrase_is_compared_after_nfc(client: Client) -> None:
    """A passphrase typed with combining characters opens what was sealed with composed ones."""
    answer = await post(client, "/generate", {"secret": SECRET, "passphrase": "Caf\u00e9"})
    key = (await answer.get_json())["secret_key"]

    assert (await read(client, key, "Cafe\u0301")).status_code == 200


async def test_look_never_consumes(client: Client, created: Created) -> None:
    """GET and HEAD tell that a secret waits as often as they like, and take nothing."""
    for _ in range(20):
        assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 200
        assert (await client.head(f"/secrets/{created.secret_key}")).status_code == 200

    answer = await client.get(f"/secrets/{created.secret_key}")

    assert await answer.get_json() == {"expires_at": "2100-01-31T13:00:00.000Z", "attempts_left": 10}
    assert (await read(client, created.secret_key)).status_code == 200


async def test_expiry_is_right_to_the_second(client: Client, created: Created, clock: Clock) -> None:
    """A secret can be read until its time and not at it, whenever the database reaps."""
    clock.forward(3599.999)
    assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 200

    clock.forward(0.001)

    assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 404
    assert (await read(client, created.secret_key)).status_code == 404
    assert await receipt(client, created) == {
        "state": "expired",
        "created_at": "2100-01-31T12:00:00.000Z",
        "expires_at": "2100-01-31T13:00:00.000Z",
        "ended_at": "2100-01-31T13:00:00.000Z",
        "attempts_left": 10,
    }


async def test_receipt_tells_what_became(client: Client, created: Created, clock: Clock) -> None:
    """A receipt is pending without an end, then read with its time, and a right reading took an attempt."""
    pending = await receipt(client, created)
    clock.forward(5)
    await read(client, created.secret_key)

    after = await receipt(client, created)

    assert (pending["state"], pending["ended_at"], pending["attempts_left"]) == ("pending", None, 10)
    assert (after["state"], after["ended_at"], after["attempts_left"]) == ("read", "2100-01-31T12:00:05.000Z", 9)


async def test_locked_stays_locked_past_its_ttl(client: Client, created: Created, clock: Clock) -> None:
    """A locked secret ended when its last attempt was taken, and does not turn into an expired one."""
    for _ in range(10):
        clock.forward(1)
        await read(client, created.secret_key, "wrong")
    clock.forward(3600)

    body = await receipt(client, created)

    assert (body["state"], body["ended_at"]) == ("locked", "2100-01-31T12:00:10.000Z")


async def test_burn_ends_a_secret_unread(client: Client, created: Created, clock: Clock) -> None:
    """A burned secret can't be read, its envelope is gone, and burning it again answers the same."""
    clock.forward(7)
    first = await client.delete(f"/receipts/{created.receipt_key}")
    clock.forward(7)

    second = await client.delete(f"/receipts/{created.receipt_key}")

    assert first.status_code == second.status_code == 200
    assert await first.get_json() == await second.get_json() == await receipt(client, created)
    assert (await first.get_json())["state"] == "burned"
    assert (await first.get_json())["ended_at"] == "2100-01-31T12:00:07.000Z"
    assert (await read(client, created.secret_key)).status_code == 404
    assert await models.Envelope.count() == 0


@pytest.mark.parametrize("state", ["read", "locked", "expired"])
async def test_burn_of_what_ended_otherwise(client: Client, created: Created, clock: Clock, state: str) -> None:
    """Who burns too late is told how the secret ended, and its receipt stays as it was."""
    phrases = {"read": [PHRASE], "locked": ["wrong"] * 10, "expired": []}
    for phrase in phrases[state]:
        await read(client, created.secret_key, phrase)
    clock.forward(3600 if state == "expired" else 1)
    before = await receipt(client, created)

    answer = await client.delete(f"/receipts/{created.receipt_key}")

    assert answer.status_code == 409
    assert (await answer.get_json())["state"] == before["state"] == state
    assert await receipt(client, created) == before


@pytest.mark.parametrize("key", [NOT_FOUND, "short"])
async def test_receipt_of_nothing(client: Client, key: str) -> None:
    """A receipt key that names nothing is not found, to look at and to burn."""
    look, burn = await client.get(f"/receipts/{key}"), await client.delete(f"/receipts/{key}")

    assert look.status_code == burn.status_code == 404
    assert await look.get_data() == await burn.get_data()


async def test_database_holds_no_secret_no_phrase_no_key(client: Client, created: Created) -> None:
    """What is stored names neither key, nor text, nor passphrase, and the ids are not the keys' hashes."""
    collections = [models.Secret.get_motor_collection(), models.Envelope.get_motor_collection()]

    stored = repr([document for collection in collections async for document in collection.find()])

    for text in (created.secret_key, created.receipt_key, SECRET, PHRASE):
        assert text not in stored
        assert hashlib.sha256(text.encode()).hexdigest() not in stored
    assert crypto.lookup_id(created.secret_key) in stored


async def test_times_for_the_reaper(client: Client, created: Created) -> None:
    """An envelope goes when its secret expires, a receipt after twice the ttl."""
    secret, envelope = await models.Secret.find_one(), await models.Envelope.find_one()

    assert secret is not None
    assert envelope is not None
    assert envelope.expires_at == secret.expires_at == secret.created_at + timedelta(seconds=3600)
    assert secret.purge_at == secret.created_at + timedelta(seconds=7200)


async def test_claim_is_won_once(client: Client, created: Created, clock: Clock) -> None:
    """Of several who opened a secret, one claims it."""
    lookup_id = crypto.lookup_id(created.secret_key)

    results = await asyncio.gather(*(models.claim(lookup_id, clock()) for _ in range(10)), return_exceptions=True)

    assert [type(result) for result in results].count(type(None)) == 1
    assert sum(isinstance(result, SecretNotFoundError) for result in results) == 9


@pytest.mark.parametrize("reached", [True, False], ids=["reply lost", "command lost"])
@pytest.mark.parametrize("error", [AutoReconnect, NetworkTimeout])
async def test_claim_whose_connection_broke(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch, error: type[Exception], reached: bool
) -> None:
    """A reader whose claim lost its connection gets the secret, whether or not the command had arrived."""
    collection = models.Secret.get_motor_collection()
    update_one = collection.update_one
    broken: list[dict[str, Any]] = []

    async def update_once_without_reply(condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if "claim" not in update["$set"] or broken:
            return await update_one(condition, update)
        broken.append(update)
        if reached:
            await update_one(condition, update)
        raise error("cut")

    break_collection(monkeypatch, models.Secret, update_one=update_once_without_reply)

    answer = await read(client, created.secret_key)

    assert broken
    assert await answer.get_json() == {"secret": SECRET}
    assert (await receipt(client, created))["state"] == "read"


async def test_claim_that_the_driver_made_twice(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that the driver makes again, on a server that forgot the first, is the reader's all the same."""
    collection = models.Secret.get_motor_collection()
    update_one = collection.update_one
    made: list[dict[str, Any]] = []

    async def make_twice(condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if "claim" in update["$set"] and not made:
            made.append(update)
            await update_one(condition, update)
        return await update_one(condition, update)

    break_collection(monkeypatch, models.Secret, update_one=make_twice)

    answer = await read(client, created.secret_key)

    assert made
    assert await answer.get_json() == {"secret": SECRET}


async def test_claim_lost_while_the_connection_was_broken(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader whose claim lost its connection does not take another's claim for its own."""
    collection = models.Secret.get_motor_collection()
    update_one = collection.update_one
    broken: list[dict[str, Any]] = []

    async def lose_to_another(condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if "claim" in update["$set"] and not broken:
            broken.append(update)
            await update_one(condition, {"$set": {"state": "read", "claim": "another"}})
            raise AutoReconnect("cut")
        return await update_one(condition, update)

    break_collection(monkeypatch, models.Secret, update_one=lose_to_another)

    answer = await read(client, created.secret_key)

    assert broken
    assert answer.status_code == 404


class Broken:
    """A collection, some of whose commands fail as told."""

    def __init__(self, collection: Any, **commands: Any) -> None:
        self._collection = collection
        self._commands = commands

    def __getattr__(self, name: str) -> Any:
        return self._commands.get(name) or getattr(self._collection, name)


def break_collection(monkeypatch: pytest.MonkeyPatch, model: type[Document], **commands: Any) -> None:
    """Let some commands on a model's collection fail as told."""
    broken = Broken(model.get_motor_collection(), **commands)
    monkeypatch.setattr(model, "get_motor_collection", staticmethod(lambda: broken))


async def test_database_away_for_good_is_503(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim that can't be settled answers 503 and when to come back; the log has no message of the driver's."""

    async def fail(condition: dict[str, Any], update: dict[str, Any]) -> Any:
        if "claim" in update["$set"]:
            raise AutoReconnect(f"the driver quotes {created.secret_key}")
        return await update_one(condition, update)

    collection = models.Secret.get_motor_collection()
    update_one = collection.update_one
    break_collection(monkeypatch, models.Secret, update_one=fail)

    answer = await read(client, created.secret_key)

    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "a claim is in doubt: AutoReconnect" in caplog.text
    assert created.secret_key not in caplog.text


async def test_failing_database_is_503_and_logged_by_class(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any error of the driver's is a 503 that says when to come back, and a log line without its message."""

    async def fail(*_: Any) -> None:
        raise AutoReconnect(f"the driver quotes {created.secret_key}")

    monkeypatch.setattr(models.Secret, "get", fail)

    answer = await client.get(f"/secrets/{created.secret_key}")
    ready = await client.get("/health/ready")
    live = await client.get("/health/live")

    assert (answer.status_code, ready.status_code, live.status_code) == (503, 503, 200)
    assert (await answer.get_json())["type"] == "urn:quart-ots:problem:database-unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    assert "AutoReconnect" in caplog.text
    assert created.secret_key not in caplog.text


async def test_envelope_that_was_not_deleted_answers_all_the_same(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A secret that was claimed is answered even if its envelope can't be deleted; its TTL will."""

    async def fail(*_: Any) -> None:
        raise AutoReconnect("cut")

    break_collection(monkeypatch, models.Envelope, delete_one=fail)

    answer = await read(client, created.secret_key)

    assert await answer.get_json() == {"secret": SECRET}
    assert "left to its TTL" in caplog.text


@pytest.mark.parametrize(
    ("sealed", "names_key"),
    [(b"", False), (b"\x01" * 400, True), (b"\x01" + b"\x07" * 8 + b"$2b$04$" + b"." * 22 + bytes(12 + 271), True)],
    ids=["empty", "damaged", "unknown key"],
)
async def test_envelope_that_can_not_be_opened_costs_no_attempt(
    client: Client, created: Created, caplog: pytest.LogCaptureFixture, sealed: bytes, names_key: bool
) -> None:
    """A damaged envelope or a missing master key is a 503 and a log line with the key id, and takes no attempt."""
    await models.Envelope.get_motor_collection().update_one({}, {"$set": {"sealed": sealed}})

    answer = await read(client, created.secret_key)

    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    assert (await receipt(client, created))["attempts_left"] == 10
    assert (sealed[1:9].hex() if names_key else "key id ?") in caplog.text


async def test_expired_secret_that_can_not_be_opened_is_gone(client: Client, created: Created, clock: Clock) -> None:
    """A secret past its ttl is a 404 like any other, even if the reaper left it and no key of the ring opens it."""
    await models.Envelope.get_motor_collection().update_one({}, {"$set": {"sealed": b"\x01" * 400}})

    clock.forward(3600)

    stranger = await read(client, "a" * 43)
    answer = await read(client, created.secret_key)
    assert (answer.status_code, await answer.get_data()) == (404, await stranger.get_data())


async def test_full_pool_is_503_and_costs_no_attempt(
    app: Quart, client: Client, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no place in the KDF pool, readers and creators are told to come back, and nobody loses an attempt."""
    parts = app.extensions["quart_ots"]
    monkeypatch.setattr(parts.kdf, "_free", 0)

    answers = [
        await read(client, created.secret_key),
        await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE}),
    ]

    assert [answer.status_code for answer in answers] == [503, 503]
    assert all("Retry-After" in answer.headers for answer in answers)
    assert (await client.get("/health/live")).status_code == 200
    assert (await receipt(client, created))["attempts_left"] == 10


async def test_pool_bounds_what_waits() -> None:
    """A pool of one thread and two places in line takes three, and the fourth when one of them has left."""
    pool = KdfPool(threads=1, queue=2)
    with pool.place(), pool.place():
        with pool.place(), pytest.raises(BusyError):
            pool.place().__enter__()
        with pool.place():
            assert await pool.run(sum, [1, 2]) == 3
    pool.close()


async def niceness_in(pool: KdfPool) -> int:
    """Give the priority at which a pool's thread runs: on Linux, that of the thread that asks."""
    with pool.place():
        niceness = await pool.run(os.getpriority, os.PRIO_PROCESS, 0)
    pool.close()
    return niceness


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
async def test_key_stretching_gives_way() -> None:
    """The threads that hash are below all others, so that answers need not wait for them."""
    before = os.getpriority(os.PRIO_PROCESS, 0)

    assert await niceness_in(KdfPool(threads=1, queue=0)) == min(19, before + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


async def test_key_stretching_where_priorities_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that lets nobody change a priority does not stop the service."""

    def forbid(*_: int) -> None:
        raise PermissionError

    before = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(os, "setpriority", forbid)

    assert await niceness_in(KdfPool(threads=1, queue=0)) == before


async def hang_up(app: Quart, secret_key: str, phrase: str, moment: asyncio.Event) -> list[Any]:
    """Send a reading, hang up at a moment, and give what the app sent until then. Waits for what it still does."""
    arrived = False

    async def receive() -> Any:
        nonlocal arrived
        if arrived:
            await moment.wait()
            return {"type": "http.disconnect"}
        arrived = True
        return {"type": "http.request", "body": json.dumps({"passphrase": phrase}).encode(), "more_body": False}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    path = f"/secrets/{secret_key}"
    scope: Any = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path},
        **{"query_string": b"", "headers": [(b"host", b"h"), (b"content-type", b"application/json")]},
    }
    await app(scope, receive, send)
    await app.extensions["quart_ots"].finish()
    return sent


@pytest.fixture
def judging(app: Quart, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Give the moment when the KDF begins."""
    begun = asyncio.Event()
    kdf = app.extensions["quart_ots"].kdf
    run = kdf.run

    async def tell_and_run(*args: Any) -> Any:
        begun.set()
        await asyncio.sleep(0.01)
        return await run(*args)

    monkeypatch.setattr(kdf, "run", tell_and_run)
    return begun


async def test_reader_who_hangs_up_at_the_claim_does_not_leave_an_envelope(
    app: Quart, client: Client, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim goes on to its end when its client hangs up in the middle: the envelope is deleted."""
    claimed = asyncio.Event()
    delete = models._delete_envelope

    async def slow_delete(lookup_id: str) -> None:
        claimed.set()
        await asyncio.sleep(0.01)
        await delete(lookup_id)

    monkeypatch.setattr(models, "_delete_envelope", slow_delete)

    assert await hang_up(app, created.secret_key, PHRASE, claimed) == []

    assert await models.Envelope.count() == 0
    assert (await receipt(client, created))["state"] == "read"


async def test_guesser_who_hangs_up_does_not_leave_an_envelope(
    app: Quart, client: Client, created: Created, judging: asyncio.Event
) -> None:
    """A guess whose client hangs up while it is judged counts like any other, up to locking the secret."""
    for _ in range(models.MAX_ATTEMPTS):
        judging.clear()
        assert await hang_up(app, created.secret_key, "wrong", judging) == []

    assert (await receipt(client, created))["state"] == "locked"
    assert await models.Envelope.count() == 0


async def test_reader_who_hangs_up_before_the_claim_loses_an_attempt_only(
    app: Quart, client: Client, created: Created, judging: asyncio.Event
) -> None:
    """A right reader whose connection breaks while the key is stretched can come back and read."""
    assert await hang_up(app, created.secret_key, PHRASE, judging) == []

    assert (await receipt(client, created))["attempts_left"] == 9
    assert await (await read(client, created.secret_key)).get_json() == {"secret": SECRET}


async def test_every_answer_has_the_security_headers(client: Client, created: Created) -> None:
    """No answer may be stored, sniffed, or tell others where it came from; errors are no exception."""
    answers = [
        await client.get("/health/live"),
        await client.get("/nowhere"),
        await client.put("/generate"),
        await client.options("/generate"),
        await client.get("/docs"),
        await client.get("/docs/swagger-ui.css"),
        await client.get("/openapi.json"),
        await read(client, NOT_FOUND),
        await post(client, "/generate", b"{"),
        await client.get(f"/receipts/{created.receipt_key}"),
    ]

    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Expires" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs/index.html", 404),
        ("POST", "/generate/", 404),
        ("GET", f"/secrets/{NOT_FOUND}/", 404),
        ("GET", f"/secrets/{NOT_FOUND}/../x", 404),
        ("GET", "/secrets/", 404),
        ("GET", "/secrets/%2e%2e%2fx", 404),
        ("PUT", "/generate", 405),
        ("DELETE", f"/secrets/{NOT_FOUND}", 405),
        ("POST", f"/receipts/{NOT_FOUND}", 405),
        ("BREW", "/generate", 405),
    ],
)
async def test_routing_errors_are_problems(client: Client, method: str, path: str, status: int) -> None:
    """What is not served is a problem without a redirect and without the path; 405 says what is allowed."""
    answer = await client.open(path, method=method, json=None)

    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    text = (await answer.get_data(as_text=True)) + str(answer.headers)
    assert NOT_FOUND not in text
    assert ("Allow" in answer.headers) == (status == 405)


async def test_unexpected_error_is_a_plain_500(
    client: Client, created: Created, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours answers 500 without detail, and is logged by class and place, not by value."""

    async def fail(*_: Any) -> None:
        raise RuntimeError(f"about {created.secret_key}")

    monkeypatch.setattr(models, "fetch_waiting", fail)

    answer = await client.get(f"/secrets/{created.secret_key}")

    assert answer.status_code == 500
    assert json.loads(await answer.get_data())["type"] == "urn:quart-ots:problem:internal-error"
    assert "unexpected RuntimeError on GET /secrets/<secret_key>" in caplog.text
    assert "routes.py:" in caplog.text
    assert created.secret_key not in caplog.text
    assert created.secret_key not in str(await answer.get_data())
