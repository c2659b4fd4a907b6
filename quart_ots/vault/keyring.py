"""Where the master keys come from: a text, a file, or a file in the instance folder that the first start makes."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
from pathlib import Path

from .crypto import KeyRing, new_master_key

MASTER_KEY_FILE = "master.key"


class KeyRingError(Exception):
    """The master keys cannot be had. The text says why, in a line for the operator that shows no key."""


def encode(master_key: bytes) -> str:
    """Return a key as settings and key files have it: base64."""
    return base64.b64encode(master_key).decode()


def parse(source: str, texts: list[str]) -> KeyRing:
    """Return the ring of keys in base64, the first of which seals.

    Args:
        source: What an error names, such as a setting.
        texts: A key each.

    Raises:
        KeyRingError: There is none, or one is not base64, not 32 bytes long, or there twice.

    """
    try:
        return KeyRing([base64.b64decode(text.strip().encode(), validate=True) for text in texts])
    except binascii.Error:
        raise KeyRingError(f"{source} has a key that is not base64") from None
    except ValueError as error:
        raise KeyRingError(f"{source} {error}") from None


def read_file(source: str, path: Path) -> KeyRing:
    """Return the ring in a key file, a key a line; KeyRingError if it cannot be read."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyRingError(f"{source} can't be read: {type(error).__name__}") from None
    return parse(source, [line for line in lines if line.strip()])


def read_or_make_file(folder: Path) -> KeyRing:
    """Return the ring in the instance folder's key file, which is made if there is none.

    Of several processes that do so at once, all return the ring of the one that was first.

    Raises:
        KeyRingError: The file cannot be read or made.

    """
    path = folder / MASTER_KEY_FILE
    try:
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                write_private(path, encode(new_master_key()) + "\n")
    except OSError as error:
        raise KeyRingError(f"{path} can't be made: {error.strerror}") from None
    return read_file(str(path), path)


def write_private(path: Path, text: str) -> None:
    """Make a file that only its owner may read (0600): complete and on the disk, or not at all.

    Raises:
        FileExistsError: The file is there, and stays as it is.
        OSError: It cannot be made.

    """
    # Not named by the process id, which is 1 in every container that shares the folder.
    draft = path.with_suffix(f".{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, is to outlive a loss of power
    finally:
        os.close(folder)


def load(keys: str | None, file: Path | None, folder: Path) -> KeyRing | None:
    """Return the ring that the settings name, or None if they name none and the instance folder has no key file yet.

    Args:
        keys: The setting MASTER_KEYS: comma-separated.
        file: The setting MASTER_KEYS_FILE.
        folder: The instance folder.

    Raises:
        KeyRingError: The keys cannot be read.

    """
    if keys is not None:
        return parse("QUART_OTS_MASTER_KEYS", keys.split(","))
    if file is not None:
        return read_file("QUART_OTS_MASTER_KEYS_FILE", file)
    path = folder / MASTER_KEY_FILE
    try:
        there = path.exists()
    except OSError as error:
        raise KeyRingError(f"{path} can't be read: {type(error).__name__}") from None
    return read_file(str(path), path) if there else None
