"""A second derivation of the envelope, from docs/envelope.md alone: hashlib, hmac, bcrypt and AESGCM.

``python -m tests.test_vault.reference`` writes the vectors anew. They are only to change with the envelope's version.
"""

import base64
import hashlib
import hmac
import json
import unicodedata
from pathlib import Path
from typing import Any

import bcrypt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).parent / "vectors"


def hkdf(material: bytes, info: str, salt: bytes = bytes(32)) -> bytes:
    """RFC 5869 for 32 bytes of output: one block of expansion."""
    extracted = hmac.new(salt, material, hashlib.sha256).digest()
    return hmac.new(extracted, info.encode() + b"\x01", hashlib.sha256).digest()


def lookup_id(secret_key: str) -> str:
    """Where a secret is stored."""
    return hkdf(secret_key.encode(), "quart-ots/v1/lookup").hex()


def key_id(master_key: bytes) -> bytes:
    """What a master key is called."""
    return hkdf(master_key, "quart-ots/v1/key-id")[:8]


def seal(
    master_key: bytes,
    secret_key: str,
    passphrase: str,
    secret: str,
    salt: bytes,
    nonce: bytes,
    **changed: Any,
) -> bytes:
    """Seal, with parts changed that a forger might change."""
    phrase = unicodedata.normalize("NFC", passphrase).encode()
    digest = hmac.new(secret_key.encode(), phrase, hashlib.sha256).digest()
    stretched = bcrypt.hashpw(base64.b64encode(digest), salt)
    key = hkdf(stretched + secret_key.encode(), "quart-ots/v1/seal", salt=master_key)
    head = changed.get("version", b"\x01") + changed.get("key_id", key_id(master_key)) + salt
    text = secret.encode()
    padding = 255 - len(text) % 255
    associated = head + changed.get("lookup_id", lookup_id(secret_key)).encode()
    sealed: bytes = head + nonce + AESGCM(key).encrypt(nonce, text + bytes([padding]) * padding, associated)
    return sealed


def inputs() -> dict[str, dict[str, str]]:
    """What the vectors seal."""
    plain = {
        "master_key": bytes(range(32)).hex(),
        "secret_key": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg",
        "passphrase": "correct horse battery staple",
        "secret": "s",
        "salt": "$2b$04$abcdefghijklmnopqrstuu",
        "nonce": bytes(range(12)).hex(),
    }
    changes = {
        "one byte": {},
        "a block less one": {"secret": "x" * 254},
        "a whole block": {"secret": "x" * 255},
        "a block and one": {"secret": "x" * 256},
        "line ends, NUL and emoji": {"secret": "a\r\nb\n\0\t \U0001f511 "},
        "a decomposed passphrase": {"passphrase": "Cafe\u0301 \u212b"},
        "the same composed": {"passphrase": "Caf\u00e9 \u00c5"},
        "a passphrase of 1024 bytes": {"passphrase": "\u00e9" * 512},
        "a NUL in the passphrase": {"passphrase": "a\0b"},
        "cost 10": {"salt": "$2b$10$N9qo8uLOickgx2ZMRZoMye"},
        "other keys": {"master_key": "ff" * 32, "secret_key": "z" * 43, "nonce": "ff" * 12},
    }
    return {name: plain | change for name, change in changes.items()}


def build(given: dict[str, str], **changed: Any) -> str:
    """Seal what a vector says, and give hex."""
    return seal(
        bytes.fromhex(given["master_key"]),
        given["secret_key"],
        given["passphrase"],
        given["secret"],
        given["salt"].encode(),
        bytes.fromhex(given["nonce"]),
        **changed,
    ).hex()


def bad_envelopes() -> list[dict[str, str]]:
    """What must not open, and how it is refused."""
    given = inputs()["a block and one"]
    good = bytes.fromhex(build(given))

    def flip(place: int, bit: int = 1) -> str:
        return (good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]).hex()

    other = inputs()["other keys"]
    rows = [
        ("version 0", {"envelope": build(given, version=b"\0")}, "DamagedEnvelopeError"),
        ("version 2", {"envelope": build(given, version=b"\2")}, "DamagedEnvelopeError"),
        ("key id flipped", {"envelope": flip(1)}, "UnknownKeyError"),
        ("bcrypt's prefix flipped", {"envelope": flip(10)}, "DamagedEnvelopeError"),
        ("cost flipped to 05", {"envelope": flip(14)}, "NotOpenedError"),
        ("cost flipped to 24", {"envelope": flip(13, 2)}, "DamagedEnvelopeError"),
        ("salt flipped", {"envelope": flip(16, 2)}, "NotOpenedError"),
        ("salt's spare bits set", {"envelope": flip(37)}, "DamagedEnvelopeError"),
        ("nonce flipped", {"envelope": flip(38)}, "NotOpenedError"),
        ("first byte of ciphertext flipped", {"envelope": flip(50)}, "NotOpenedError"),
        ("last byte of ciphertext flipped", {"envelope": flip(559)}, "NotOpenedError"),
        ("tag flipped", {"envelope": flip(len(good) - 1)}, "NotOpenedError"),
        ("a block cut off", {"envelope": good[:-255].hex()}, "NotOpenedError"),
        ("a byte added", {"envelope": good.hex() + "00"}, "DamagedEnvelopeError"),
        ("empty", {"envelope": ""}, "DamagedEnvelopeError"),
        ("wrong passphrase", {"passphrase": "correct horse battery stable"}, "NotOpenedError"),
        ("wrong secret_key", {"secret_key": other["secret_key"]}, "NotOpenedError"),
        ("wrong lookup id", {"envelope": build(given, lookup_id=lookup_id(other["secret_key"]))}, "NotOpenedError"),
        ("key not on the ring", {"master_key": other["master_key"]}, "UnknownKeyError"),
        (
            "another key under this one's id",
            {"envelope": build(given | {"master_key": "ee" * 32}, key_id=key_id(bytes(range(32))))},
            "NotOpenedError",
        ),
    ]
    base = {name: given[name] for name in ("master_key", "secret_key", "passphrase")} | {"envelope": good.hex()}
    return [{"name": name, **base, **change, "error": error} for name, change, error in rows]


def main() -> None:
    """Write the vectors."""
    good = [{"name": name, **given, "envelope": build(given)} for name, given in inputs().items()]
    for file, rows in (("good.json", good), ("bad.json", bad_envelopes())):
        (VECTORS / file).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
