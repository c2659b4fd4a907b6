"""The key ring: where master keys come from, what is refused, and the file that the first start makes."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quart_ots.vault import keyring
from quart_ots.vault.crypto import key_id
from quart_ots.vault.keyring import KeyRingError
from tests.conftest import ROOT

KEYS = [bytes([number]) * 32 for number in (1, 2)]
TEXTS = [base64.b64encode(key).decode() for key in KEYS]
IDS = [key_id(key).hex() for key in KEYS]


def refusal(keys: str | None, file: Path | None, folder: Path) -> str:
    """Load a ring that must be refused, and return the line that says why."""
    with pytest.raises(KeyRingError) as caught:
        keyring.load(keys, file, folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n", " \n"])
def test_keys_from_settings(tmp_path: Path, ending: str) -> None:
    """Keys come from a variable, comma-separated, or a file, one a line; the first seals. No key is made."""
    file = tmp_path / "keys"
    file.write_text(TEXTS[0] + (ending or "\n") + TEXTS[1] + ending)

    rings = [keyring.load(", ".join(TEXTS), None, tmp_path / "instance"), keyring.load(None, file, tmp_path)]

    for ring in rings:
        assert ring is not None
        assert (ring.ids, ring.first) == (IDS, KEYS[0])
    assert list(tmp_path.iterdir()) == [file]


def test_no_ring_yet(tmp_path: Path) -> None:
    """Where nothing names a key there is no ring, and looking for one makes none."""
    assert keyring.load(None, None, tmp_path / "instance") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("", "not 32 bytes"),
        (TEXTS[0] + ",", "not 32 bytes"),
        (TEXTS[0][:-4], "not 32 bytes"),
        (TEXTS[0][:-1], "not base64"),
        ("*" * 44, "not base64"),
        ("é" * 44, "not base64"),
        (f"{TEXTS[0]},{TEXTS[0]}", "same key twice"),
    ],
)
def test_bad_keys(tmp_path: Path, keys: str, told: str) -> None:
    """Keys that are none are refused by the setting's name, and never shown."""
    line = refusal(keys, None, tmp_path)

    assert line.startswith("QUART_OTS_MASTER_KEYS has ")
    assert told in line
    assert not keys or keys not in line


def test_bad_key_files(tmp_path: Path) -> None:
    """A key file that is missing, empty or not text is refused, and never shown."""
    file = tmp_path / "keys"
    assert refusal(None, file, tmp_path) == "QUART_OTS_MASTER_KEYS_FILE can't be read: FileNotFoundError"
    file.write_bytes(b"\n")
    assert refusal(None, file, tmp_path) == "QUART_OTS_MASTER_KEYS_FILE has no key"
    file.write_bytes(KEYS[0] + b"\xff")
    assert refusal(None, file, tmp_path) == "QUART_OTS_MASTER_KEYS_FILE can't be read: UnicodeDecodeError"
    file.write_text(f"{TEXTS[0]}\nhunter2\n")
    assert refusal(None, file, tmp_path) == "QUART_OTS_MASTER_KEYS_FILE has a key that is not base64"


def test_file_is_made_once(tmp_path: Path) -> None:
    """The first start makes a key that only its owner may read; later ones use it and never write over it."""
    path = tmp_path / "master.key"

    first = keyring.read_or_make_file(tmp_path)
    written = path.read_bytes()
    second = keyring.read_or_make_file(tmp_path)
    loaded = keyring.load(None, None, tmp_path)

    assert loaded is not None
    assert first.ids == second.ids == loaded.ids
    assert path.read_bytes() == written
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_is_damaged(tmp_path: Path) -> None:
    """A key file that holds no key stays as it is: another key in its place would open nothing."""
    path = tmp_path / "master.key"
    path.write_text("")

    with pytest.raises(KeyRingError, match=r"master\.key has no key"):
        keyring.read_or_make_file(tmp_path)

    assert path.read_text() == ""


def test_file_that_can_not_be_made(tmp_path: Path) -> None:
    """Where no file can be made, a line says which and why."""
    with pytest.raises(KeyRingError) as caught:
        keyring.read_or_make_file(tmp_path / "none")

    assert str(caught.value) == f"{tmp_path / 'none' / 'master.key'} can't be made: No such file or directory"


def test_file_of_a_rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that make the key file at once, both use the one that was first."""
    path, link = tmp_path / "master.key", os.link

    def link_after_a_rival(*names: Any) -> None:
        path.write_text(TEXTS[0])
        link(*names)

    monkeypatch.setattr(os, "link", link_after_a_rival)

    assert keyring.read_or_make_file(tmp_path).ids == IDS[:1]
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_was_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full leaves no key file at all, and so none that is cut short."""

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(KeyRingError, match="No space left on device"):
        full.setattr(os, "fsync", fail)
        keyring.read_or_make_file(tmp_path)

    assert list(tmp_path.iterdir()) == []


# Processes that wait for a pipe to be closed, and then all at once make the file of the same folder.
RIVALS = """
import os, pathlib, sys
from quart_ots.vault import keyring
os.getpid = lambda: 1
start, close = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(close)
        os.read(start, 1)
        os.write(1, f"{keyring.read_or_make_file(pathlib.Path('.')).ids}\\n".encode())
        os._exit(0)
os.close(close)
sys.exit(any(os.wait()[1] for _ in range(8)))
"""


def test_file_of_many_rivals(tmp_path: Path) -> None:
    """Of many processes that make the key file at once, all of the same process id, all use the same one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", RIVALS], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    rings = done.stdout.splitlines()
    assert len(rings) == 8
    assert len(set(rings)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]
