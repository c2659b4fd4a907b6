"""Settings: where they come from, what they refuse, and that no key is ever shown."""

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ReadPreference, WriteConcern

from quart_ots import config, create_app, db
from quart_ots.config import SETTINGS, StartError, load_key_ring
from quart_ots.crypto import key_id, new_master_key
from tests.service import ROOT

KEYS = [bytes([number]) * 32 for number in (1, 2)]
TEXTS = [base64.b64encode(key).decode() for key in KEYS]
IDS = [key_id(key).hex() for key in KEYS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(**overrides: Any) -> str:
    """Start with settings that must be refused, and give the line that says why."""
    with pytest.raises(StartError) as caught:
        create_app(overrides)
    line = str(caught.value)
    assert line.startswith("quart_ots: ")
    assert "\n" not in line
    return line


def test_defaults(folder: Path) -> None:
    """Without any setting the app has the defaults, and an instance folder that only its owner may enter."""
    app = create_app()

    assert all(app.config[setting.name] == setting.default for setting in SETTINGS[1:])
    assert app.config["INSTANCE_PATH"] == folder / "instance"
    assert stat.S_IMODE((folder / "instance").stat().st_mode) == 0o700


def test_order_of_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.py in the instance folder wins over the environment, and the caller over both."""
    monkeypatch.setenv("QUART_OTS_INSTANCE_PATH", "elsewhere")
    for name in ("BCRYPT_COST", "KDF_THREADS", "KDF_QUEUE"):
        monkeypatch.setenv(f"QUART_OTS_{name}", "5")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "config.py").write_text("KDF_THREADS = 6\nKDF_QUEUE = 6\n")

    app = create_app({"KDF_QUEUE": 7})

    assert [app.config[name] for name in ("BCRYPT_COST", "KDF_THREADS", "KDF_QUEUE")] == [5, 6, 7]


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.bounds], ids=lambda setting: setting.name)
def test_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch, setting: config.Setting) -> None:
    """Each number is taken from its first to its last bound, and refused by name beyond and as anything else."""
    assert setting.bounds is not None
    low, high = setting.bounds
    for value in (low, high, str(high)):
        assert create_app({setting.name: value}).config[setting.name] == int(value)

    for bad in (low - 1, high + 1, float(high), True, None, "", "x", f"{high}.0", f" {high}", "1e1"):
        assert (
            refusal(**{setting.name: bad})
            == f"quart_ots: {setting.variable} must be a whole number from {low:,} to {high:,}"
        )
    monkeypatch.setenv(setting.variable, str(high + 1))
    assert setting.variable in refusal()


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("QUART_OTS_BCRYPT_COSTS", "did you mean BCRYPT_COST"),
        ("QUART_OTS_MASTER_KEY", "did you mean MASTER_KEYS"),
        ("QUART_OTS_", "QUART_OTS_ is not a setting"),
        ("QUART_OTS_TESTING", "is not a setting"),
        ("QUART_OTS_A__B", "is not a setting"),
    ],
)
def test_unknown_variable(folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, told: str) -> None:
    """A variable that is no setting stops the start: a typo must not become a default. Its value is not shown."""
    monkeypatch.setenv(variable, "a value")

    line = refusal()

    assert told in line
    assert "a value" not in line


def test_unknown_name_in_file_and_call(folder: Path) -> None:
    """A name that is no setting is refused in config.py and in a call as well; Quart's own are let through."""
    assert "RATE_LIMITS is not a setting; did you mean RATE_LIMIT" in refusal(RATE_LIMITS=1)
    (folder / "instance" / "config.py").write_text("KDF_THREAD = 1\n")
    assert "KDF_THREAD is not a setting" in refusal()
    (folder / "instance" / "config.py").write_text("TESTING = True\n")
    assert create_app().config["TESTING"] is True


def test_key_file_of_many_rivals(folder: Path) -> None:
    """Of many processes that make the key file at once, whatever their ids, all use the same one."""
    (folder / "instance").mkdir()
    code = (
        "import os, sys; os.getpid = lambda: 1\nfrom quart_ots import config\nsys.stdin.read()\n"
        "print(config.load_key_ring({'MASTER_KEYS': None, 'MASTER_KEYS_FILE': None, "
        "'INSTANCE_PATH': config.Path('instance')}).ids)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rivals = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(8)
    ]

    rings = set()
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.close()
    for rival in rivals:
        with rival:
            assert rival.stdout is not None
            rings.add(rival.stdout.read())

    assert [rival.wait(30) for rival in rivals] == [0] * 8
    assert len(rings) == 1
    assert [file.name for file in (folder / "instance").iterdir()] == ["master.key"]


def test_broken_files(folder: Path) -> None:
    """A config.py that is no Python, and an instance folder that can't be made, are told in a line."""
    (folder / "instance").mkdir()
    (folder / "instance" / "config.py").write_text("BCRYPT_COST =\n")
    assert "config.py can't be read: SyntaxError" in refusal()
    (folder / "file").touch()
    assert "QUART_OTS_INSTANCE_PATH" in refusal(INSTANCE_PATH="file/instance")
    assert "QUART_OTS_INSTANCE_PATH is empty" in refusal(INSTANCE_PATH="")
    (folder / "instance" / "config.py").write_text("INSTANCE_PATH = 'elsewhere'\n")
    assert "can't set INSTANCE_PATH" in refusal()


def test_key_file_is_made_once(folder: Path) -> None:
    """The first start makes a key that only its owner may read; later ones use it and never write over it."""
    first = load_key_ring(create_app().config)
    path = folder / "instance" / "master.key"
    written = path.read_bytes()

    second = load_key_ring(create_app().config)

    assert first.ids == second.ids
    assert path.read_bytes() == written
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["master.key"]


def test_key_file_of_a_rival(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that make the key file at once, both use the one that was first."""
    path = folder / "instance" / "master.key"
    path.parent.mkdir()

    def draw_after_a_rival() -> bytes:
        config.write_private(path, TEXTS[0])
        return new_master_key()

    monkeypatch.setattr("quart_ots.config.new_master_key", draw_after_a_rival)

    assert load_key_ring(create_app().config).ids == IDS[:1]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n"])
def test_keys_from_settings(folder: Path, ending: str) -> None:
    """Keys come from a variable, comma-separated, or a file, one a line; the first seals. No other key is made."""
    (folder / "keys").write_text(TEXTS[0] + (ending or "\n") + TEXTS[1] + ending)

    by_variable = load_key_ring(create_app({"MASTER_KEYS": ", ".join(TEXTS)}).config)
    by_file = load_key_ring(create_app({"MASTER_KEYS_FILE": "keys"}).config)

    assert by_variable.ids == by_file.ids == IDS
    assert by_variable.first == KEYS[0]
    assert not (folder / "instance" / "master.key").exists()


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
def test_bad_keys(folder: Path, keys: str, told: str) -> None:
    """Keys that are none stop the start, told by the setting and never by their value."""
    line = refusal(MASTER_KEYS=keys)

    assert "QUART_OTS_MASTER_KEYS" in line
    assert told in line
    assert not keys or keys not in line


def test_url_from_a_file(folder: Path) -> None:
    """The database's URL may come from a file, and not from a file and a variable at once."""
    (folder / "url").write_text("mongodb://u:hunter2@h/\n")

    assert create_app({"MONGODB_URL_FILE": "url"}).config["MONGODB_URL"] == "mongodb://u:hunter2@h/"
    assert "both set" in refusal(MONGODB_URL_FILE="url", MONGODB_URL="mongodb://u:hunter2@h/")
    assert "QUART_OTS_MONGODB_URL_FILE can't be read" in refusal(MONGODB_URL_FILE="none")


def test_bad_key_files(folder: Path) -> None:
    """A key file that is missing, empty or not text, or set beside the variable, stops the start."""
    assert "QUART_OTS_MASTER_KEYS_FILE can't be read: FileNotFoundError" in refusal(MASTER_KEYS_FILE="none")
    (folder / "keys").write_bytes(b"\n")
    assert "QUART_OTS_MASTER_KEYS_FILE has no key" in refusal(MASTER_KEYS_FILE="keys")
    (folder / "keys").write_bytes(KEYS[0] + b"\xff")
    assert "QUART_OTS_MASTER_KEYS_FILE can't be read: UnicodeDecodeError" in refusal(MASTER_KEYS_FILE="keys")
    assert "both set" in refusal(MASTER_KEYS_FILE="keys", MASTER_KEYS=TEXTS[0])
    assert "QUART_OTS_MASTER_KEYS must be text" in refusal(MASTER_KEYS=[TEXTS[0]])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://u:hunter2@h/",
        "mongodb://u:hunter2@h:x/",
        "mongodb://",
        "mongodb://u:hunter2@h/?tls=true&tlsCAFile=/hunter2",
        "mongodb://u:hunter2@h/?loadBalanced=true&replicaSet=x",
        "mongodb://u:hunter2@h/?fsync=true",
    ],
)
def test_bad_url(folder: Path, url: str) -> None:
    """A URL that is none stops the start, without the password that may be in it."""
    line = refusal(MONGODB_URL=url)

    assert line.startswith("quart_ots: QUART_OTS_MONGODB_URL ")
    assert "hunter2" not in line


async def test_url_cannot_weaken_durability() -> None:
    """Writes are majority and journaled and reads go to the primary, whatever the URL says."""
    client: AsyncIOMotorClient[dict[str, Any]] = db._client(
        "mongodb://h/?w=0&journal=false&readPreference=secondary&serverSelectionTimeoutMS=60000&socketTimeoutMS=0"
    )

    assert client.write_concern == WriteConcern("majority", j=True)
    assert client.read_preference == ReadPreference.PRIMARY
    options = client.delegate.options
    assert options.server_selection_timeout == 2
    assert options.pool_options.socket_timeout == 5
    client.close()


def test_readme_lists_every_setting() -> None:
    """README's table is the one that the settings themselves write."""
    readme = (ROOT / "README.md").read_text()

    assert config.table() in readme


@pytest.mark.parametrize(
    "command",
    [
        ("hypercorn", "--workers", "0", "--bind", "127.0.0.1:0", "quart_ots:create_app()"),
        ("quart", "--app", "quart_ots", "run", "--port", "0"),
    ],
    ids=["hypercorn", "quart"],
)
def test_bad_setting_is_one_line_under_any_server(folder: Path, command: tuple[str, ...]) -> None:
    """Whatever starts the app, a bad setting ends it with status 1 and one line."""
    server = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "QUART_OTS_BCRYPT_COST": "3"}

    done = subprocess.run([str(server), *command[1:]], env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert done.stderr == "quart_ots: QUART_OTS_BCRYPT_COST must be a whole number from 4 to 16\n"
