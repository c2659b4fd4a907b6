"""Keys, key ring and envelope, version 1. Pure functions: no I/O, no framework.

Reading takes three things that are kept apart: the ``secret_key`` of the link, the passphrase, and the
server's master key. What is stored is a lookup id and an envelope; opening the envelope takes all three.
``docs/envelope.md`` has the format and the reasons, ``tests/test_vault/vectors`` known answers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import string
import struct
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import bcrypt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.padding import PKCS7

from .errors import DamagedEnvelopeError, NotOpenedError, UnknownKeyError

VERSION = b"\x01"
MASTER_KEY_BYTES = 32
KEY_ID_BYTES = 8
SALT_BYTES = 29
NONCE_BYTES = 12  # NIST SP 800-38D, section 8.2: 96 bits
TAG_BYTES = 16
# PKCS7 counts in one byte, so 255 is the largest block: it hides a length to within 255 bytes.
BLOCK_BYTES = 255
KEY_LENGTH = 43  # 43 * log2(62) = 256 bits
KEY_ALPHABET = string.ascii_letters + string.digits

# log2 of bcrypt's rounds. More than 16, which takes 4 s, is refused: a salt changed in the database to 31 would keep a
# thread busy for two days.
COSTS = (4, 16)

_HEAD = struct.Struct(f"1s {KEY_ID_BYTES}s {SALT_BYTES}s {NONCE_BYTES}s")
_KEY = re.compile(rf"[A-Za-z0-9]{{{KEY_LENGTH}}}")
# 16 bytes in bcrypt's base64 leave four bits over, which bcrypt wants to be zero: so only four last characters occur.
_SALT = re.compile(rb"\$2b\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{21}[.Oeu]")


class KeyRing:
    """The server's master keys. The first seals, all open.

    Args:
        master_keys: At least one, 32 random bytes each.

    Raises:
        ValueError: No key, one of another length, or the same one twice.

    """

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        if not master_keys:
            raise ValueError("has no key")
        if any(len(key) != MASTER_KEY_BYTES for key in master_keys):
            raise ValueError(f"has a key that is not {MASTER_KEY_BYTES} bytes long")
        self._keys = {key_id(key): key for key in master_keys}
        if len(self._keys) != len(master_keys):
            raise ValueError("has the same key twice")
        self.ids = [id_.hex() for id_ in self._keys]
        self.first_id, self.first = next(iter(self._keys.items()))

    def __repr__(self) -> str:
        """Name the keys by their ids, so that no log or traceback can show one."""
        return f"KeyRing({', '.join(self.ids)})"

    def find(self, id_: bytes) -> bytes:
        """Return the master key with this 8-byte id; UnknownKeyError if the ring lacks it."""
        try:
            return self._keys[id_]
        except KeyError:
            raise UnknownKeyError(id_.hex()) from None


class Envelope(NamedTuple):
    """The parts of a sealed secret, in the order in which they are stored."""

    version: bytes  # 1
    key_id: bytes  # 8
    salt: bytes  # 29 ASCII, bcrypt's, says its own cost
    nonce: bytes  # 12
    ciphertext: bytes  # a multiple of 255, and the 16-byte tag


def new_key() -> str:
    """Draw a ``secret_key`` or ``receipt_key``: 43 characters of ``[A-Za-z0-9]``, 256 bits."""
    return "".join(secrets.choice(KEY_ALPHABET) for _ in range(KEY_LENGTH))


def is_key(text: str) -> bool:
    """Return whether the text has the shape of a key. Whether it names a secret is another matter."""
    return _KEY.fullmatch(text) is not None


def new_master_key() -> bytes:
    """Draw a master key: 32 bytes."""
    return secrets.token_bytes(MASTER_KEY_BYTES)


def key_id(master_key: bytes) -> bytes:
    """Derive a master key's id: 8 bytes that reveal nothing of it, and that no other key can claim."""
    return _hkdf(master_key, "key-id")[:KEY_ID_BYTES]


def lookup_id(secret_key: str) -> str:
    """Derive where a secret is stored: 64 hex digits, the only trace of the key in the database."""
    return _hkdf(secret_key.encode(), "lookup").hex()


def receipt_id(receipt_key: str) -> str:
    """Derive where a receipt is stored: 64 hex digits."""
    return _hkdf(receipt_key.encode(), "receipt").hex()


def stretch(secret_key: str, passphrase: str, salt: bytes) -> bytes:
    """Make guessing a passphrase slow. Blocks for the time the salt's cost asks: run it in a thread.

    The HMAC brings a passphrase of any length, NUL bytes too, under bcrypt's limit of 72 bytes, and binds the
    work to this secret: a guess can't be tried on two secrets at once.

    Args:
        secret_key: 43 characters of ``[A-Za-z0-9]``.
        passphrase: Any length; compared after Unicode NFC.
        salt: bcrypt's 29 ASCII bytes, ``$2b$`` + cost + 16 bytes of salt in bcrypt's base64.

    Returns:
        bcrypt's 60 ASCII bytes. Never stored.

    Raises:
        ValueError: The salt is not bcrypt's.

    Source: Provos and Mazières, "A Future-Adaptable Password Scheme", USENIX 1999.

    """
    phrase = unicodedata.normalize("NFC", passphrase).encode()
    digest = hmac.new(secret_key.encode(), phrase, hashlib.sha256).digest()
    return bcrypt.hashpw(base64.b64encode(digest), salt)


def seal(ring: KeyRing, secret_key: str, passphrase: str, secret: str, cost: int) -> bytes:
    """Seal a secret under the ring's first key. Blocks: run it in a thread.

    Args:
        ring: The server's master keys.
        secret_key: 43 characters of ``[A-Za-z0-9]``, drawn for this secret.
        passphrase: Text without lone surrogates.
        secret: Text without lone surrogates, any length.
        cost: log2 of bcrypt's rounds, within COSTS.

    Returns:
        The envelope, 66 bytes and the secret's UTF-8 padded to the next multiple of 255.

    """
    return seal_with(ring, secret_key, passphrase, secret, bcrypt.gensalt(cost), secrets.token_bytes(NONCE_BYTES))


def seal_with(ring: KeyRing, secret_key: str, passphrase: str, secret: str, salt: bytes, nonce: bytes) -> bytes:
    """Seal with a given salt (29 bytes) and nonce (12 bytes), neither of which may be used twice."""
    head = VERSION + ring.first_id + salt
    padder = PKCS7(8 * BLOCK_BYTES).padder()
    padded = padder.update(secret.encode()) + padder.finalize()
    cipher = _cipher(ring.first, secret_key, passphrase, salt)
    return head + nonce + cipher.encrypt(nonce, padded, _associated_data(head, secret_key))


def parse(sealed: bytes, ring: KeyRing) -> Envelope:
    """Split an envelope into its parts, and check that it may open: cheap, before an attempt is spent on it.

    Raises:
        DamagedEnvelopeError: The bytes are not an envelope of version 1.
        UnknownKeyError: The ring lacks its master key.

    """
    if len(sealed) < _HEAD.size:
        raise DamagedEnvelopeError("?")
    version, key_id_, salt, nonce = _HEAD.unpack_from(sealed)
    envelope = Envelope(version, key_id_, salt, nonce, sealed[_HEAD.size :])
    blocks, rest = divmod(len(envelope.ciphertext) - TAG_BYTES, BLOCK_BYTES)
    if envelope.version != VERSION or blocks < 1 or rest or not _SALT.fullmatch(envelope.salt):
        raise DamagedEnvelopeError(envelope.key_id.hex())
    ring.find(envelope.key_id)
    return envelope


def open(ring: KeyRing, secret_key: str, passphrase: str, sealed: bytes) -> str:
    """Open an envelope. Blocks for the time its salt's cost asks: run it in a thread.

    Args:
        ring: The server's master keys.
        secret_key: 43 characters of ``[A-Za-z0-9]``.
        passphrase: Text without lone surrogates; compared after Unicode NFC.
        sealed: What `seal` returned.

    Returns:
        The secret.

    Raises:
        EnvelopeError: As `parse` raises it.
        NotOpenedError: Wrong passphrase or secret_key, or an envelope that was tampered with.

    """
    envelope = parse(sealed, ring)
    head = envelope.version + envelope.key_id + envelope.salt
    cipher = _cipher(ring.find(envelope.key_id), secret_key, passphrase, envelope.salt)
    try:
        padded = cipher.decrypt(envelope.nonce, envelope.ciphertext, _associated_data(head, secret_key))
    except InvalidTag:
        raise NotOpenedError from None
    unpadder = PKCS7(8 * BLOCK_BYTES).unpadder()
    return (unpadder.update(padded) + unpadder.finalize()).decode()


def _associated_data(head: bytes, secret_key: str) -> bytes:
    """Bind the ciphertext to its head and to its place, so that no part of one envelope fits another."""
    return head + lookup_id(secret_key).encode()


def _cipher(master_key: bytes, secret_key: str, passphrase: str, salt: bytes) -> AESGCM:
    stretched = stretch(secret_key, passphrase, salt)
    return AESGCM(_hkdf(stretched + secret_key.encode(), "seal", salt=master_key))


def _hkdf(material: bytes, purpose: str, salt: bytes | None = None) -> bytes:
    """Derive 32 bytes for one purpose (RFC 5869)."""
    return HKDF(SHA256(), 32, salt=salt, info=f"quart-ots/v1/{purpose}".encode()).derive(material)
