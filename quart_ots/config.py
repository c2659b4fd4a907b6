"""Every setting: its default, unit, bounds and why it is there.

Read in this order, the later one wins: these defaults, ``QUART_OTS_*`` in the environment, ``config.py`` in the
instance folder, what ``create_app`` is called with. `table` writes README's table.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import difflib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from quart import Config, Quart

from .crypto import COSTS, KeyRing, new_master_key

PREFIX = "QUART_OTS"
MASTER_KEY_FILE = "master.key"


class StartError(SystemExit):
    """The service can't start, and the operator can mend it.

    A SystemExit, so that every server ends with this one line and no traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"quart_ots: {message}")


def end_with(message: str) -> StartError:
    """Give a StartError to raise while the event loop runs: asyncio would add tracebacks of what it cancels then."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    return StartError(message)


@dataclass(frozen=True)
class Setting:
    """One setting. Text, one of a few choices, or, with bounds, a whole number from the first to the second."""

    name: str
    default: str | int | None
    unit: str
    why: str
    bounds: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"{PREFIX}_{self.name}"

    def check(self, value: Any) -> Any:
        """Give the value as the setting's type, or raise StartError."""
        if self.choices:
            if value in self.choices:
                return value
            raise StartError(f"{self.variable} must be one of {', '.join(self.choices)}")
        if self.bounds is None:
            if value is None or isinstance(value, str | os.PathLike):
                return value
            raise StartError(f"{self.variable} must be text")
        if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
            value = int(value)
        low, high = self.bounds
        if type(value) is not int or not low <= value <= high:
            raise StartError(f"{self.variable} must be a whole number from {low:,} to {high:,}")
        return value


SETTINGS = (
    Setting(
        "INSTANCE_PATH",
        "instance",
        "folder",
        "Where the service keeps its own files: config.py, master.key and the embedded database. "
        "A relative path starts at the working folder.",
    ),
    Setting(
        "MONGODB_URL",
        None,
        "URL",
        "MongoDB 6 or newer: standalone, replica set or sharded. The path names the database, `quart_ots` unless "
        "given. Without a URL the embedded database is started, for local use.",
    ),
    Setting(
        "MONGODB_URL_FILE",
        None,
        "path",
        "The URL in a file, such as a Docker secret: it has the database's password.",
    ),
    Setting(
        "MASTER_KEYS",
        None,
        "base64, comma-separated",
        "The key ring: 32 bytes each, the first seals, all open. Instead of a file.",
    ),
    Setting(
        "MASTER_KEYS_FILE",
        None,
        "path",
        "The key ring in a file, one key a line. Without either, `master.key` in the instance folder is used, and "
        "made at the first start.",
    ),
    Setting(
        "BCRYPT_COST",
        10,
        "log2 of rounds",
        "What a guess at a passphrase costs: 10 takes about 65 ms of one core, each step doubles it. "
        "It can be changed at any time; secrets keep the cost they were sealed with.",
        COSTS,
    ),
    Setting(
        "KDF_THREADS",
        0,
        "threads",
        "How many keys are stretched at once. 0: one a core, as bcrypt fills one.",
        (0, 256),
    ),
    Setting(
        "KDF_QUEUE",
        100,
        "requests",
        "How many more may wait for that. One beyond is told 503 at once: 100 take 3.3 s on two cores at cost 10.",
        (0, 10_000),
    ),
    Setting(
        "RATE_LIMIT",
        600,
        "requests a minute",
        "The budget of one client address, in each process. All of it may be spent at once.",
        (1, 1_000_000),
    ),
    Setting(
        "TRUSTED_PROXIES",
        0,
        "proxies",
        "How many reverse proxies stand before the service, each adding to X-Forwarded-For. "
        "With too large a number, clients choose their own address.",
        (0, 10),
    ),
    Setting(
        "METRICS_BIND",
        None,
        "host:port",
        "Where to serve /metrics alone, such as 127.0.0.1:9108, and then no longer where everyone may ask.",
    ),
    Setting(
        "LOG_FORMAT",
        "auto",
        "word",
        "How to log, always to stderr. auto: colours on a terminal, JSON elsewhere.",
        choices=("auto", "json", "console"),
    ),
    Setting(
        "LOG_LEVEL",
        "info",
        "word",
        "The least to log. The line for each request is info.",
        choices=("info", "warning", "error"),
    ),
    Setting(
        "LOG_ADDRESSES",
        0,
        "0 or 1",
        "1: the line for each request has the client's address.",
        (0, 1),
    ),
    Setting(
        "DRAIN",
        0,
        "seconds",
        "How long to go on serving after SIGTERM, while /health/ready says 503 so that a load balancer turns away.",
        (0, 300),
    ),
)
_NAMES = {setting.name: setting for setting in SETTINGS}


def load(app: Quart, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Fill the app's config from all sources, and make the instance folder (mode 0700) where there is none.

    Returns:
        Where each setting's value came from, in words for the operator.

    Raises:
        StartError: A name is unknown or a value out of bounds, told without showing the value of a key.

    """
    known = set(app.config) | set(_NAMES)
    for variable in sorted(os.environ):
        if variable.startswith(f"{PREFIX}_") and variable[len(PREFIX) + 1 :] not in _NAMES:
            raise StartError(f"{variable} is not a setting{_nearest(variable[len(PREFIX) + 1 :])}")
    app.config.from_mapping({setting.name: setting.default for setting in SETTINGS})
    sources = {setting.name: setting.variable if setting.variable in os.environ else "default" for setting in SETTINGS}
    # Left as text: JSON would make a number of a folder named 2026, and a float of 1e1.
    app.config.from_prefixed_env(PREFIX, loads=str)

    path = overrides.get("INSTANCE_PATH", app.config["INSTANCE_PATH"])
    if not path:
        raise StartError(f"{PREFIX}_INSTANCE_PATH is empty")
    folder = Path(path).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"{PREFIX}_INSTANCE_PATH: {error.strerror}: {folder}") from None
    own = _load_file(folder / "config.py")
    if own.get("INSTANCE_PATH", path) != path and "INSTANCE_PATH" not in overrides:
        raise StartError(f"{folder / 'config.py'} is in the instance folder and can't set INSTANCE_PATH")
    app.config.from_mapping(own)
    sources.update(dict.fromkeys(own, str(folder / "config.py")))
    app.config.from_mapping(overrides)
    sources.update(dict.fromkeys(overrides, "create_app"))
    app.config["INSTANCE_PATH"] = folder

    for name in app.config:
        if name not in known:
            raise StartError(f"{name} is not a setting{_nearest(name)}")
    for setting in SETTINGS:
        app.config[setting.name] = setting.check(app.config[setting.name])
    if app.config["MONGODB_URL_FILE"] is not None:
        app.config["MONGODB_URL"] = _read_one(app.config, "MONGODB_URL").strip()
        sources["MONGODB_URL"] = str(app.config["MONGODB_URL_FILE"])
    if app.config["METRICS_BIND"] is not None:
        read_bind(app.config["METRICS_BIND"])
    return sources


def _load_file(path: Path) -> Config:
    own = Config(path.parent)
    try:
        own.from_pyfile(path, silent=True)
    except Exception as error:  # whatever the operator's own Python raises
        raise StartError(f"{path} can't be read: {type(error).__name__}") from None
    return own


def read_bind(text: str) -> tuple[str, int]:
    """Take METRICS_BIND apart into address and port; StartError if it is not a pair of the two."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        number = int(port) if re.fullmatch("[0-9]{1,5}", port) else 0
    except ValueError:
        number = 0
    if not 0 < number < 65_536:
        raise StartError(
            f"{PREFIX}_METRICS_BIND must be an IP address and a port, such as 127.0.0.1:9108 or [::1]:9108"
        )
    return host, number


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, _NAMES, 1)
    return f"; did you mean {close[0]}?" if close else ""


def load_key_ring(config: Mapping[str, Any]) -> KeyRing:
    """Read the master keys from where the settings say, making the instance folder's file if it comes to that.

    Raises:
        StartError: Both settings are set, or the keys can't be read. No key is shown.

    """
    if config["MASTER_KEYS_FILE"] is not None:
        return _parse_keys(f"{PREFIX}_MASTER_KEYS_FILE", _lines(_read_one(config, "MASTER_KEYS")))
    if config["MASTER_KEYS"] is not None:
        return _parse_keys(f"{PREFIX}_MASTER_KEYS", config["MASTER_KEYS"].split(","))
    path = config["INSTANCE_PATH"] / MASTER_KEY_FILE
    _make_key_file(path)
    return _parse_keys(str(path), _lines(_read(str(path), path)))


def _read_one(config: Mapping[str, Any], name: str) -> str:
    """Read the file of a setting that is either in a variable or in a file."""
    variable, file = f"{PREFIX}_{name}", config[f"{name}_FILE"]
    if config[name] is not None:
        raise StartError(f"{variable} and {variable}_FILE are both set: choose one")
    return _read(f"{variable}_FILE", Path(file))


def _read(source: str, path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{source} can't be read: {type(error).__name__}") from None


def _lines(text: str) -> list[str]:
    """Give the lines of a key file that have a key. In a variable, an empty key is a mistake."""
    return [line for line in text.splitlines() if line.strip()]


def _parse_keys(source: str, texts: list[str]) -> KeyRing:
    try:
        return KeyRing([base64.b64decode(text.strip().encode(), validate=True) for text in texts])
    except binascii.Error:
        raise StartError(f"{source} has a key that is not base64") from None
    except ValueError as error:
        raise StartError(f"{source} {error}") from None


def _make_key_file(path: Path) -> None:
    """Make a key file, unless there is one: two processes may try at once."""
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            write_private(path, base64.b64encode(new_master_key()).decode() + "\n")


def write_private(path: Path, text: str) -> None:
    """Make a file that only its owner may read (0600): whole and on the disk, or not at all.

    Raises:
        FileExistsError: The file is there, and stays as it is.

    """
    # Not by the process id, which is 1 in every container that shares the folder.
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


def table() -> str:
    """Write the settings as README's table."""
    rows = ["| variable | default | unit, bounds | what for |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = "-" if setting.default is None else f"`{setting.default}`"
        bounds = "" if setting.bounds in (None, (0, 1)) else f", {setting.bounds[0]:,} to {setting.bounds[1]:,}"
        bounds += "".join(f", {choice}" for choice in setting.choices)
        rows.append(f"| `{setting.variable}` | {default} | {setting.unit}{bounds} | {setting.why} |")
    return "\n".join(rows)
