"""Around every request: its id, its headers, its log line, and what the server may log of it."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import create_app
from quart_ots.edge.request import NOWHERE, choose_id, harden, read_target
from quart_ots.settings import Settings
from tests.asgi import Call
from tests.conftest import Created, read

VALID = ["try-1", "a" * 36, "0190f7f1-3c53-7d6b-8b0e-1f2e3d4c5b6a", "A.b_C"]
INVALID = ["", "k" * 43, "a b", "a\x7f", 'x"y', "ü", "a\n", "a" * 37]


def facts(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Return what the last request's line says, but for the time that it took."""
    record = next(record for record in reversed(caplog.records) if record.message == "request")
    names = ("method", "route", "status", "bytes", "address")
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


@pytest.mark.parametrize("sent", VALID)
async def test_id_is_taken_over(client: Client, sent: str) -> None:
    """A valid X-Request-ID comes back."""
    answer = await client.get("/health/live", headers={"X-Request-ID": sent})

    assert answer.headers.getlist("X-Request-ID") == [sent]


@pytest.mark.parametrize("sent", [text for text in INVALID if "\n" not in text])
async def test_id_is_drawn(client: Client, sent: str) -> None:
    """What is no id, or long enough for a key, is replaced."""
    answer = await client.get("/health/live", headers={"X-Request-ID": sent})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_id_of_several() -> None:
    """Of several headers the first that is an id is taken; without any, ids differ."""
    assert choose_id([*INVALID, *VALID]) == VALID[0]
    assert len({choose_id(sent) for sent in ((), (), INVALID)}) == 3


async def test_line(client: Client, created: Created, caplog: pytest.LogCaptureFixture) -> None:
    """A request's line has method, route, status and bytes, and neither path nor address."""
    caplog.set_level(logging.INFO)

    answer = await client.get(f"/secrets/{created.secret_key}?a=b")

    size = len(await answer.get_data())
    assert facts(caplog) == {"method": "GET", "route": "/secrets/<secret_key>", "status": 200, "bytes": size}
    await client.head(f"/secrets/{created.secret_key}")
    assert facts(caplog)["bytes"] == 0
    await read(client, created.secret_key, "a wrong passphrase")
    assert (facts(caplog)["method"], facts(caplog)["status"]) == ("POST", 403)
    assert created.secret_key not in caplog.text


async def test_line_of_what_is_unknown(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """A method or path that nobody knows, which may be anything, is a dash."""
    caplog.set_level(logging.INFO)

    call = Call(app, "BREW", "/sent", b"")
    await call.end()

    assert (facts(caplog)["method"], facts(caplog)["route"], facts(caplog)["status"]) == ("-", "-", 404)


@pytest.mark.parametrize("settings", [{"log_addresses": True, "trusted_proxies": 1}], indirect=True)
@pytest.mark.parametrize(
    ("sent", "address"),
    [("192.0.2.7, 2001:db8::7", "2001:db8::7"), ("fe80::1%sent", "fe80::1"), ("sent", "198.51.100.1")],
)
async def test_line_with_address(
    settings: Settings, memory: None, caplog: pytest.LogCaptureFixture, sent: str, address: str
) -> None:
    """The address is logged where a setting says so: the one that can be believed, and no text beside it."""
    caplog.set_level(logging.INFO)
    app = create_app(settings)

    await Call(
        app, "GET", "/health/live", headers=[(b"x-forwarded-for", sent.encode())], client=("198.51.100.1", 1)
    ).end()

    assert facts(caplog)["address"] == address
    assert "sent" not in caplog.text


async def test_server_sees_no_key(app: Quart, created: Created) -> None:
    """A server that logs a request by its scope finds the route's template there, no query and no headers."""
    path = f"/secrets/{created.secret_key}"
    call = Call(app, "GET", path, headers=[(b"referer", path.encode())], query_string=path.encode())
    await call.end()

    assert call.status == 200
    assert call.scope["path"] == "/secrets/<secret_key>"
    assert created.secret_key not in repr(call.scope)


async def test_server_sees_no_path_that_is_not_served(app: Quart, created: Created) -> None:
    """What looks like nothing of ours may be a key with a typing error before it: the server sees a dash."""
    call = Call(app, "GET", f"/secret/{created.secret_key}")
    await call.end()

    assert call.status == 404
    assert (call.scope["path"], call.scope["raw_path"]) == ("-", b"-")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/b", "/a/b"),
        ("//h/a", NOWHERE),
        ("//metrics", NOWHERE),
        ("http://h//metrics", NOWHERE),
        ("http://h/a", "/a"),
        ("http://h", NOWHERE),
        ("http://[h/a", NOWHERE),
        ("", NOWHERE),
        ("*", NOWHERE),
        ("h:443", NOWHERE),
    ],
)
def test_target(target: str, path: str) -> None:
    """A target is a path or a URL with one; what has none, or may be taken for another one, is where nothing is."""
    assert read_target(target) == path


@given(st.text())
def test_target_of_anything(target: str) -> None:
    """Whatever is asked for has a path."""
    path = read_target(target)

    assert path.startswith("/")
    assert not path.startswith("//")


def test_headers_are_hardened_once() -> None:
    """A handler's own caching is overruled, its own policy for contents kept, and each header there once."""
    own = [(b"cache-control", b"public"), (b"content-security-policy", b"sandbox"), (b"x-other", b"1")]

    hardened = harden(own)

    assert len(dict(hardened)) == len(hardened) == 5
    assert dict(hardened) == {
        **{b"cache-control": b"no-store", b"x-content-type-options": b"nosniff", b"referrer-policy": b"no-referrer"},
        **{b"content-security-policy": b"sandbox", b"x-other": b"1"},
    }
    assert sorted(harden(hardened)) == sorted(hardened)
    assert dict(harden([]))[b"content-security-policy"] == b"default-src 'none'; frame-ancestors 'none'"
