"""What goes over a socket: the very bytes of secrets, odd framing, and what is hardly HTTP."""

from __future__ import annotations

import json
import socket

import pytest

from quart_ots.api.bodies import MAX_BODY_BYTES
from tests.service import PHRASE, Service
from tests.test_system.conftest import Database

CHUNKED = "Transfer-Encoding: chunked"
BODY = json.dumps({"secret": "a raw secret", "passphrase": PHRASE}).encode()
H2C = (
    b"GET /secrets/SENT5 HTTP/1.1\r\nHost: h\r\nAuthorization: SENT5\r\nUpgrade: h2c\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: %s\r\n\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def exchange(service: Service, sent: bytes, half_close: bool = False) -> bytes:
    """Send bytes as they are, and return all that comes back until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(sent)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while not received.endswith((b"}", b"}\n")):
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
        return received


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Write a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunk(body: bytes) -> bytes:
    """Write a chunk of a chunked body."""
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


@pytest.mark.parametrize(
    "text",
    ["a\r\nb\0 \U0001f511 e\u0301\u202e \ufeff ", "\0" * 65_536, "é" * 32_768],
    ids=["odd characters", "largest when escaped", "largest of two bytes"],
)
def test_round_trip(service: Service, text: str) -> None:
    """A secret comes back to the byte."""
    created = service.generate(text)

    assert service.read(created["secret_key"]).json() == {"secret": text}


def test_head_has_no_body(service: Service) -> None:
    """HEAD answers as GET does, without the body, and consumes nothing."""
    path = f"/secrets/{service.generate()['secret_key']}"

    head, get = service.client.head(path), service.client.get(path)

    assert head.status == get.status == 200
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert head.content == b""
    assert get.json()["attempts_left"] == 10


def test_chunked_body(service: Service) -> None:
    """A chunked body without a length is read like any other."""
    service.sent.add("a raw secret")

    received = exchange(service, post("/generate", chunk(BODY[:9]) + chunk(BODY[9:]) + chunk(b""), CHUNKED))

    assert received.startswith(b"HTTP/1.1 201")


@pytest.mark.parametrize(
    "sent",
    [
        post("/generate", b"", f"Content-Length: {MAX_BODY_BYTES + 1}"),
        post("/generate", b"", "Content-Length: 99999999999999999999"),
        post("/generate", chunk(b" " * (MAX_BODY_BYTES + 1)), CHUNKED),
    ],
    ids=["announced", "announced beyond 64 bits", "chunked"],
)
def test_body_over_the_limit_is_refused_unread(service: Service, sent: bytes) -> None:
    """A body over the limit is answered before its end: by its length, or when a chunk goes beyond."""
    assert exchange(service, sent).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (post("/generate", BODY[:-1], f"Content-Length: {len(BODY) - 1}"), {"400"}),
        (post("/generate", BODY, f"Content-Length: {len(BODY)}", "Content-Encoding: gzip"), {"415"}),
        (post("/generate", BODY, "Content-Length: -1"), {"400"}),
        (post("/generate", BODY, "Content-Length: SENT5"), {"400"}),
        (post("/generate", BODY, f"Content-Length: {len(BODY)}", "Content-Length: 1"), {"400"}),
        (post("/generate", b"zz\r\n", CHUNKED), {"400", ""}),
        (post("/generate", b"", f"X: {'SENT5' * 8000}"), {"400", "431"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: [SENT5\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: a b,c\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: SENT5:99999999\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\n\r\n", {"400"}),
        (b"GET /SENT5 HTTP/1.0\r\n\r\n", {"404"}),
        (b"GET /secrets/SENT5%00%ff%f0%9f HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET /secrets/SENT5\xff HTTP/1.1\r\nHost: h\r\n\r\n", {"400", "404"}),
        (b"GET //secrets//SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"POST //generate HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", {"404"}),
        (b"GET http://SENT5/secrets/SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET secrets/SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"400", "404"}),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"SENT5 /secrets/SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"405"}),
        (b"GET /secrets/SENT5?SENT5=SENT5 HTTP/1.1\r\nHost: h\r\nReferer: SENT5\r\nUser-Agent: SENT5\r\n\r\n", {"404"}),
        (
            b"GET /secrets/SENT5 HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            {"405"},
        ),
        (b"GET ?SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET http://[SENT5/ HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET http://SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"\x16\x03\x01\x02\x00\x01SENT5", {"400", ""}),
        (b"SENT5\r\n\r\n", {"400", ""}),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else "",
)
def test_rude_request(service: Service, sent: bytes, statuses: set[str]) -> None:
    """What is hardly HTTP gets a 4xx or a closed connection, and nothing of it is repeated."""
    service.sent.add("SENT5")

    received = exchange(service, sent, half_close=not (sent.startswith(b"POST") or b"websocket" in sent))

    assert received[9:12].decode() in statuses
    assert b"SENT5" not in received
    assert received[9:12] in (b"400", b"431", b"") or b"cache-control: no-store" in received
    assert "SENT5" not in service.logged()


@pytest.mark.parametrize(
    "sent",
    [
        H2C % b"A",
        H2C % b"SENT5====",
        PREFACE + b"SENT5" + bytes(40) + b"SENT5",
        # A HEADERS frame whose :path (index 4) is no ASCII, and a DATA frame with what must not be logged.
        PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x0d\1\4\0\0\0\1" + b"\x83\x86\4\x08/gen\xc3\xa9SE" + b"NT5",
        PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x05\0\1\0\0\0\1SENT5",
    ],
    ids=["upgrade with bad settings", "upgrade with other bad settings", "rubbish", "path beyond ASCII", "data first"],
)
def test_broken_http2(service: Service, sent: bytes) -> None:
    """Broken HTTP/2 ends its connection and no more; the errors that Hypercorn then logs quote nothing of it."""
    service.sent.add("SENT5")

    received = exchange(service, sent, half_close=True)

    assert b"SENT5" not in received
    assert b" 500 " not in received
    assert "SENT5" not in service.logged()
    assert service.client.get("/health/live").status == 200


def test_truncated_body_creates_nothing(service: Service, mongod: Database) -> None:
    """A body that ends before its length is no request: nothing is answered, logged as an error, or kept."""
    before = service.logged()
    with mongod.client() as client:
        envelopes = client.get_default_database().envelopes
        kept = envelopes.count_documents({})

        received = exchange(service, post("/generate", BODY[:20], f"Content-Length: {len(BODY)}"), half_close=True)

        assert b"HTTP/1.1 20" not in received
        assert b"HTTP/1.1 5" not in received
        assert envelopes.count_documents({}) == kept
    assert "rror" not in service.logged()[len(before) :]
