"""The envelope, against known answers, a second derivation, and whatever hypothesis thinks of."""

from __future__ import annotations

import json
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quart_ots.vault import crypto, errors
from tests.test_vault import reference

GOOD = json.loads((reference.VECTORS / "good.json").read_text())
BAD = json.loads((reference.VECTORS / "bad.json").read_text())
MASTER_KEY = bytes(range(32))
RING = crypto.KeyRing([MASTER_KEY])
SECRET_KEY = "k" * 43
COST = 4  # bcrypt's least, 1 ms: what a guess costs is not what is tested here
# A lone surrogate is not Unicode text and has no UTF-8: api/bodies.py refuses it.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def named(rows: list[dict[str, str]]) -> pytest.MarkDecorator:
    """Run a test once for each vector."""
    return pytest.mark.parametrize("vector", rows, ids=[row["name"] for row in rows])


@named(GOOD)
def test_seal_matches_vectors(vector: dict[str, str]) -> None:
    """The same keys, salt and nonce give the same envelope, in every version of this code."""
    ring = crypto.KeyRing([bytes.fromhex(vector["master_key"])])

    sealed = crypto.seal_with(
        ring,
        vector["secret_key"],
        vector["passphrase"],
        vector["secret"],
        vector["salt"].encode(),
        bytes.fromhex(vector["nonce"]),
    )

    assert sealed.hex() == vector["envelope"]


@named(GOOD)
def test_open_matches_vectors(vector: dict[str, str]) -> None:
    """An envelope of any age opens, whatever key seals now."""
    ring = crypto.KeyRing([b"\x55" * 32, bytes.fromhex(vector["master_key"])])

    secret = crypto.open(ring, vector["secret_key"], vector["passphrase"], bytes.fromhex(vector["envelope"]))

    assert secret == vector["secret"]


@named(GOOD)
def test_vectors_match_second_derivation(vector: dict[str, str]) -> None:
    """The vectors follow from the documented format, not from this code."""
    assert reference.build(vector) == vector["envelope"]


@named(BAD)
def test_open_refuses_bad_vectors(vector: dict[str, str]) -> None:
    """Each way an envelope can be wrong is refused, and by the documented error."""
    ring = crypto.KeyRing([bytes.fromhex(vector["master_key"])])

    with pytest.raises(Exception) as caught:
        crypto.open(ring, vector["secret_key"], vector["passphrase"], bytes.fromhex(vector["envelope"]))

    assert type(caught.value).__name__ == vector["error"]


def test_open_refuses_every_truncation() -> None:
    """No beginning of an envelope opens."""
    sealed = crypto.seal(RING, SECRET_KEY, "p", "x" * 300, COST)

    for length in range(len(sealed)):
        with pytest.raises((errors.EnvelopeError, errors.NotOpenedError)):
            crypto.open(RING, SECRET_KEY, "p", sealed[:length])


def test_ids_match_second_derivation() -> None:
    """What is stored of keys is HKDF of them, each for its own purpose."""
    assert crypto.lookup_id(SECRET_KEY) == reference.lookup_id(SECRET_KEY)
    assert crypto.receipt_id(SECRET_KEY) == reference.hkdf(SECRET_KEY.encode(), "quart-ots/v1/receipt").hex()
    assert crypto.key_id(MASTER_KEY) == reference.key_id(MASTER_KEY)
    assert len({crypto.lookup_id(SECRET_KEY), crypto.receipt_id(SECRET_KEY)}) == 2


@given(TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_open_reverses_seal(passphrase: str, secret: str) -> None:
    """Any text comes back as it was."""
    sealed = crypto.seal(RING, SECRET_KEY, passphrase, secret, COST)

    assert crypto.open(RING, SECRET_KEY, passphrase, sealed) == secret


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_opens(data: st.DataObject) -> None:
    """An envelope with any single bit changed does not open."""
    sealed = bytearray(crypto.seal(RING, SECRET_KEY, "p", "x" * 20, COST))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8

    with pytest.raises((errors.EnvelopeError, errors.NotOpenedError)):
        crypto.open(RING, SECRET_KEY, "p", bytes(sealed))


@given(st.integers(0, 700), st.integers(0, 700))
@settings(max_examples=100, deadline=None)
def test_length_is_hidden_to_a_block(one: int, two: int) -> None:
    """Envelopes are of one length exactly if their secrets fill the same number of blocks."""
    lengths = {len(crypto.seal(RING, SECRET_KEY, "p", "x" * length, COST)) for length in (one, two)}

    assert (len(lengths) == 1) == (one // 255 == two // 255)


@given(st.binary(max_size=700))
@settings(max_examples=500, deadline=None)
def test_rubbish_is_damaged(rubbish: bytes) -> None:
    """Bytes that are no envelope, of any length, raise the documented error and no other."""
    with pytest.raises(errors.EnvelopeError):
        crypto.parse(rubbish, RING)


def test_seal_never_repeats() -> None:
    """The same secret under the same keys has another envelope each time: salt and nonce are fresh."""
    envelopes = {crypto.seal(RING, SECRET_KEY, "p", "s", COST) for _ in range(20)}

    parsed = [crypto.parse(sealed, RING) for sealed in envelopes]
    assert len({envelope.salt for envelope in parsed}) == len({envelope.nonce for envelope in parsed}) == 20


def test_seal_uses_the_first_key_and_the_cost_given() -> None:
    """The envelope names the ring's first key, and the cost stands in its salt."""
    ring = crypto.KeyRing([b"\x01" * 32, b"\x02" * 32])

    envelope = crypto.parse(crypto.seal(ring, SECRET_KEY, "p", "s", 5), ring)

    assert envelope.key_id == crypto.key_id(b"\x01" * 32)
    assert envelope.salt.startswith(b"$2b$05$")


@pytest.mark.parametrize("keys", [[], [b"short"], [b"\x01" * 32, b"\x01" * 32]])
def test_key_ring_refuses_bad_keys(keys: list[bytes]) -> None:
    """A ring without keys, or with keys of the wrong length, or with one twice, is none."""
    with pytest.raises(ValueError, match="key"):
        crypto.KeyRing(keys)


def test_key_ring_does_not_print_keys() -> None:
    """A ring in a log line shows ids."""
    assert repr(RING) == f"KeyRing({crypto.key_id(MASTER_KEY).hex()})"


def test_new_keys_have_256_bits() -> None:
    """Keys are 43 letters and digits, each as likely as any other: 43 times log2(62) bits, which is 256."""
    keys = [crypto.new_key() for _ in range(5000)]

    assert len(set(keys)) == 5000
    assert all(crypto.is_key(key) for key in keys)
    counts = Counter("".join(keys))
    assert set(counts) == set(string.ascii_letters + string.digits)
    # 3,468 of each are expected, with a standard deviation of 58. Chance does not reach eight of those (p < 1e-13);
    # a random byte modulo 62 has thirteen for eight of the characters.
    assert all(abs(count - 5000 * 43 / 62) < 8 * 58.4 for count in counts.values())


@pytest.mark.parametrize("text", ["", "a" * 42, "a" * 44, "a" * 42 + "-", "a" * 42 + "\n", "é" * 43])
def test_is_key_refuses(text: str) -> None:
    """Only 43 letters and digits of ASCII are a key."""
    assert not crypto.is_key(text)
