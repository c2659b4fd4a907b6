"""A start that fails ends with one line for the operator, whatever is at fault."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from quart_ots import create_app
from quart_ots.settings import Settings, StartError


async def test_no_threads(settings: Settings, memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that allows no thread more is no reason for a traceback, nor to start with fewer."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    app = create_app(settings)

    with pytest.raises(StartError, match="quart_ots: the system refuses threads: raise the limit of processes"):
        await app.startup()


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "has no key"), (b"x", "is not base64"), (b"\xff", "can't be read: UnicodeDecodeError")]
)
def test_damaged_key_file(settings: Settings, content: bytes, told: str) -> None:
    """A key file that is damaged is told before anything starts, and stays as it is."""
    settings.instance_path.mkdir()
    file = settings.instance_path / "master.key"
    file.write_bytes(content)

    with pytest.raises(StartError) as caught:
        create_app(settings)

    assert str(caught.value).startswith(f"quart_ots: {file} ")
    assert told in str(caught.value)
    assert file.read_bytes() == content


async def test_key_file_that_can_not_be_made(settings: Settings, memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance folder that takes no key ends the start: secrets sealed under a key that is not kept are lost."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    app = create_app(settings)
    monkeypatch.setattr("os.link", refuse)

    with pytest.raises(StartError, match=r"quart_ots: .*/master\.key can't be made: Permission denied"):
        await app.startup()

    assert list(settings.instance_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"master_keys": SecretStr("hunter2")}], indirect=True)
def test_bad_keys(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Keys that are none are told by their setting, and neither shown nor logged."""
    caplog.set_level(logging.DEBUG)

    with pytest.raises(StartError) as caught:
        create_app(settings)

    assert str(caught.value) == "quart_ots: QUART_OTS_MASTER_KEYS has a key that is not base64"
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("settings", [{"master_keys_file": Path("/none/keys")}], indirect=True)
def test_no_key_file(settings: Settings) -> None:
    """A key file that is not there is not made: it is somebody's secret that was not mounted."""
    with pytest.raises(StartError, match="QUART_OTS_MASTER_KEYS_FILE can't be read: FileNotFoundError"):
        create_app(settings)
