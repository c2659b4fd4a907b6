"""Every setting: its name, default, unit, bounds and reason, and where its value comes from.

Read in this order, later sources win: the defaults here, ``QUART_OTS_*`` in the environment, ``config.toml`` in the
instance folder.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo

from .vault.crypto import COSTS

PREFIX = "QUART_OTS_"
CONFIG_FILE = "config.toml"
# Kubernetes sets variables for each Service of a namespace, and Docker for each linked container, named after it: for
# one named quart-ots they have our prefix. A value of another shape is taken for a typing error.
_LINKS = re.compile(
    r"(\w+_)?(?:"
    r"(?:PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP))=(?:tcp|udp|sctp)://.*"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO=(?:tcp|udp|sctp)"
    r"|(?:PORT_[0-9]+_(?:TCP|UDP|SCTP)|SERVICE)_PORT(?:_\w+)?=[0-9]+"
    r"|(?:PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR|SERVICE_HOST)=[0-9A-Fa-f.:]+"
    r"|NAME=/.*)"
)


class StartError(SystemExit):
    """The service cannot start, and the operator can fix it. The text is one line.

    A SystemExit, so that every server ends with this line and no traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"quart_ots: {message}")


class Settings(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True):
    """All settings of a service. A field's title is its unit."""

    instance_path: Path = Field(Path("instance"), title="folder")
    """Where the service keeps its own files: config.toml, master.key and the embedded database. A relative path starts
    at the working folder."""

    mongodb_url: SecretStr | None = Field(None, title="URL")
    """MongoDB 6 or newer: standalone, replica set or sharded. The path names the database, `quart_ots` unless given.
    Without a URL the embedded database is started, for local use."""

    mongodb_url_file: Path | None = Field(None, title="path")
    """The URL in a file, such as a Docker secret: it has the database's password."""

    mongod: Path | None = Field(None, title="path")
    """The mongod program that is the embedded database. Unset: the one on PATH, else the one that pip installed."""

    master_keys: SecretStr | None = Field(None, title="base64, comma-separated")
    """The key ring, which is the list of master keys: 32 bytes each, the first seals, all open. Instead of a file."""

    master_keys_file: Path | None = Field(None, title="path")
    """The key ring in a file, one key a line. Without either, `master.key` in the instance folder is used, and made at
    the first start."""

    bcrypt_cost: int = Field(10, ge=COSTS[0], le=COSTS[1], strict=True, title="log2 of rounds")
    """What a guess at a passphrase costs: 10 takes about 65 ms of one core, each step doubles it. It can be changed at
    any time; secrets keep the cost they were sealed with."""

    kdf_threads: int = Field(0, ge=0, le=256, strict=True, title="threads")
    """How many keys are stretched at once. 0: one for each core that the process may use, by its CPU affinity and its
    cgroup's quota."""

    kdf_queue: int = Field(100, ge=0, le=10_000, strict=True, title="requests")
    """Requests that may wait for a thread; beyond that the answer is 503. 100 take 3.3 s on two cores at cost 10."""

    rate_limit: int = Field(600, ge=1, le=1_000_000, strict=True, title="requests a minute")
    """The budget of one client address, in each process. All of it may be spent at once."""

    trusted_proxies: int = Field(0, ge=0, le=10, strict=True, title="proxies")
    """How many reverse proxies stand before the service, each adding to X-Forwarded-For. With too large a number,
    clients choose their own address."""

    metrics_bind: str | None = Field(None, title="host:port")
    """Where to serve /metrics, such as 127.0.0.1:9108, and not on the public port."""

    log_format: Literal["auto", "json", "console"] = Field("auto", title="word")
    """How to log, always to stderr. auto: colours on a terminal, JSON elsewhere."""

    log_level: Literal["info", "warning", "error"] = Field("info", title="word")
    """The least to log. The line for each request is info."""

    log_addresses: bool = Field(False, strict=True, title="0 or 1")
    """1: the line for each request has the client's address."""

    drain: int = Field(0, ge=0, le=300, strict=True, title="seconds")
    """How long to go on serving after SIGTERM, while /health/ready says 503 so that a load balancer turns away."""

    @field_validator("metrics_bind")
    @classmethod
    def _check_bind(cls, value: str | None) -> str | None:
        if value is not None:
            read_bind(value)
        return value


class Loaded(NamedTuple):
    """Settings, and where the value of each field came from, in words for the operator."""

    settings: Settings
    sources: Mapping[str, str]


def variable(name: str) -> str:
    """Return a field's name in the environment."""
    return PREFIX + name.upper()


def load(environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read the settings. Nothing is written, and no folder is made.

    Raises:
        StartError: A name is unknown, or a value is not what the setting takes. The value of a setting is never shown.

    """
    given: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    for name, text in _from_environment(environment):
        given[name] = _read_text(name, text)
        sources[name] = variable(name)
    folder = Path(given.get("instance_path", Settings.model_fields["instance_path"].default)).absolute()
    for name, value in _from_file(folder / CONFIG_FILE):
        given[name] = value
        sources[name] = str(folder / CONFIG_FILE)
    given["instance_path"] = folder
    for name in ("mongodb_url", "master_keys"):
        if name in given and f"{name}_file" in given:
            raise StartError(f"{variable(name)} and {variable(name)}_FILE are both set: choose one")
    if isinstance(path := given.get("mongodb_url_file"), str):  # config.toml may have anything
        given["mongodb_url"] = _read_file(f"{variable('mongodb_url')}_FILE", Path(path)).strip()
        sources["mongodb_url"] = str(path)
    try:
        return Loaded(Settings(**given), sources)
    except ValidationError as error:
        name = str(error.errors(include_input=False, include_url=False)[0]["loc"][0])
        source = variable(name) if sources[name] == variable(name) else f"{sources[name]}: {name}"
        raise StartError(f"{source} must be {expected(Settings.model_fields[name])}") from None


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the fields that variables set; an empty variable sets none."""
    for key in sorted(environment):
        if not key.startswith(PREFIX):
            continue
        name, text = key.removeprefix(PREFIX).lower(), environment[key]
        if key != variable(name) or name not in Settings.model_fields:
            if _LINKS.fullmatch(f"{key.removeprefix(PREFIX)}={text}"):
                continue
            raise StartError(f"{key} is not a setting{_nearest(name, variable)}")
        if text:
            yield name, text
        elif name in ("mongodb_url", "master_keys"):
            raise StartError(f"{key} is empty: leave it out, or set it")


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the fields that the instance folder's file sets."""
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise StartError(f"{path} can't be read: {type(error).__name__}") from None
    for name, value in values.items():
        if name not in Settings.model_fields:
            raise StartError(f"{path}: {name} is not a setting{_nearest(name, str)}")
        if name == "instance_path":
            raise StartError(f"{path} is in the instance folder and can't set {name}")
        yield name, value


def _read_text(name: str, text: str) -> Any:
    """Return a variable's text as the type of its field; as it is where it does not fit, for pydantic to refuse."""
    kind = Settings.model_fields[name].annotation
    if kind is int and re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    if kind is bool and text in ("0", "1"):
        return text == "1"
    return text


def _read_file(source: str, path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{source} can't be read: {type(error).__name__}") from None


def _nearest(name: str, spelled: Any) -> str:
    close = difflib.get_close_matches(name, Settings.model_fields, 1)
    return f"; did you mean {spelled(close[0])}?" if close else ""


def read_bind(text: str) -> tuple[str, int]:
    """Split an address and a port such as 127.0.0.1:9108 or [::1]:9108; ValueError if it is not such a pair."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    ip_address(host)
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise ValueError("no port")
    return host, int(port)


def bounds(field: FieldInfo) -> tuple[int, int] | None:
    """Return a number's bounds, both included, or None."""
    found = {name: getattr(part, name) for part in field.metadata for name in ("ge", "le") if hasattr(part, name)}
    return (found["ge"], found["le"]) if found else None


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a field is one of; none if it is free text."""
    return getattr(field.annotation, "__args__", ()) if getattr(field.annotation, "__origin__", None) is Literal else ()


def expected(field: FieldInfo) -> str:
    """Describe the values that a field takes, to follow "must be"."""
    if limits := bounds(field):
        return f"a whole number from {limits[0]:,} to {limits[1]:,}"
    if words := choices(field):
        return f"one of {', '.join(words)}"
    if field.annotation is bool:
        return "0 or 1 (true or false in config.toml)"
    if field.title == "host:port":
        return "an IP address and a port, such as 127.0.0.1:9108 or [::1]:9108"
    return "text"


def table() -> str:
    """Return the settings as README's table."""
    rows = ["| variable | default | unit, bounds | what for |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = int(field.default) if isinstance(field.default, bool) else field.default
        shown = "-" if default is None else f"`{default}`"
        limits = bounds(field)
        unit = str(field.title) + (f", {limits[0]:,} to {limits[1]:,}" if limits else "")
        unit += "".join(f", {choice}" for choice in choices(field))
        rows.append(f"| `{variable(name)}` | {shown} | {unit} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows)
