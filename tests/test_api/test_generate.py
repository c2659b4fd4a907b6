"""POST /generate: a secret is created."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

import pytest
from quart.typing import TestClientProtocol as Client

from quart_ots.vault import crypto
from quart_ots.vault.store import Envelope, Secret
from tests.conftest import PHRASE, SECRET, Created, post, read


async def test_generate_answers_with_keys_and_expiry(client: Client) -> None:
    """A creator gets two keys, and the time to the millisecond in UTC when the secret expires: in 7 days."""
    answer = await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE})

    assert answer.status_code == 201
    body = await answer.get_json()
    assert set(body) == {"secret_key", "receipt_key", "expires_at"}
    assert re.fullmatch("[A-Za-z0-9]{43}", body["secret_key"])
    assert re.fullmatch("[A-Za-z0-9]{43}", body["receipt_key"])
    assert body["secret_key"] != body["receipt_key"]
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


async def test_passphrase_is_compared_after_nfc(client: Client) -> None:
    """A passphrase typed with combining characters opens what was sealed with composed ones."""
    answer = await post(client, "/generate", {"secret": SECRET, "passphrase": "Caf\u00e9"})
    key = (await answer.get_json())["secret_key"]

    assert (await read(client, key, "Cafe\u0301")).status_code == 200


async def test_database_holds_no_secret_no_phrase_no_key(client: Client, created: Created) -> None:
    """What is stored names neither key, nor text, nor passphrase, and the ids are not the keys' hashes."""
    collections = [Secret.get_motor_collection(), Envelope.get_motor_collection()]

    stored = repr([document for collection in collections async for document in collection.find()])

    for text in (created.secret_key, created.receipt_key, SECRET, PHRASE):
        assert text not in stored
        assert hashlib.sha256(text.encode()).hexdigest() not in stored


async def test_documents_name_each_other(client: Client, created: Created) -> None:
    """The envelope is stored under the lookup id, the secret under the receipt id, and each has the other's."""
    secret, envelope = await Secret.find_one(), await Envelope.find_one()

    assert secret is not None
    assert envelope is not None
    assert envelope.id == secret.lookup_id == crypto.lookup_id(created.secret_key)
    assert secret.id == envelope.secret_id == crypto.receipt_id(created.receipt_key)


@pytest.mark.parametrize(
    ("ttl", "kept"),
    [(60, timedelta(days=1, minutes=1)), (86_400, timedelta(days=2)), (2_592_000, timedelta(days=60))],
    ids=["a minute", "a day", "30 days"],
)
async def test_times_for_the_reaper(client: Client, ttl: int, kept: timedelta) -> None:
    """An envelope goes when its secret expires; a receipt after twice the ttl, a day after the secret at the least."""
    await post(client, "/generate", {"secret": SECRET, "passphrase": PHRASE, "ttl": ttl})

    secret, envelope = await Secret.find_one(), await Envelope.find_one()

    assert secret is not None
    assert envelope is not None
    assert envelope.expires_at == secret.expires_at == secret.created_at + timedelta(seconds=ttl)
    assert secret.purge_at == secret.created_at + kept
