"""Serving: the sockets that it listens on, its limits, and how a stop goes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from quart import Quart

from quart_ots import create_app
from quart_ots.ops import serve
from quart_ots.ops.serve import USER_TIMEOUT, Stop, open_sockets
from quart_ots.settings import Settings, StartError
from tests.asgi import Call


def has_ipv6() -> bool:
    """Return whether this machine has IPv6, which a container need not."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


@contextlib.contextmanager
def opened(*binds: str) -> Iterator[list[socket.socket]]:
    """Open sockets for the time of a block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(one) for one in open_sockets(binds)]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that something else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def refusal(*binds: str) -> str:
    """Open sockets that must be refused, and return the line that says why."""
    with pytest.raises(StartError) as caught:
        open_sockets(binds)
    line = str(caught.value)
    assert line.startswith("quart_ots: --bind ")
    assert "\n" not in line
    return line


def hosts(sockets: Sequence[socket.socket]) -> set[tuple[int, str]]:
    """Return the families and addresses of sockets."""
    return {(one.family, one.getsockname()[0]) for one in sockets}


def connects(family: int, host: str, port: int) -> bool:
    """Return whether something listens."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex((host, port)) == 0


@pytest.mark.parametrize(
    ("bind", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0:0", socket.AF_INET, "0.0.0.0"),
        pytest.param("[::1]:0", socket.AF_INET6, "::1", marks=IPV6),
        pytest.param("[::]:0", socket.AF_INET6, "::", marks=IPV6),
    ],
)
def test_address(bind: str, family: int, host: str) -> None:
    """An address is listened on, and no other: [::] is not IPv4's as well."""
    with opened(bind) as sockets:
        assert hosts(sockets) == {(family, host)}
        port = sockets[0].getsockname()[1]
        assert connects(family, "::1" if family == socket.AF_INET6 else "127.0.0.1", port)
        assert host != "::" or not connects(socket.AF_INET, "127.0.0.1", port)


@IPV6
def test_empty_host() -> None:
    """An empty host is every address of both families, on the same port."""
    with opened("127.0.0.1:0") as sockets:
        port = sockets[0].getsockname()[1]

    with opened(f":{port}") as sockets:
        assert hosts(sockets) == {(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")}
        assert connects(socket.AF_INET, "127.0.0.1", port)
        assert connects(socket.AF_INET6, "::1", port)


@IPV6
def test_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is each of its addresses, once, however often the resolver names one."""
    rows: list[Any] = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        *[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))] * 2,
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)

    with opened("a-name:0") as sockets:
        assert len(sockets) == 2
        assert hosts(sockets) == {(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")}


def test_localhost() -> None:
    """The machine's own name for itself is not reached from elsewhere."""
    with opened("localhost:0") as sockets:
        assert {host for _, host in hosts(sockets)} <= {"127.0.0.1", "::1"}


@IPV6
def test_several() -> None:
    """Several addresses may be listened on, in the order given."""
    with opened("127.0.0.2:0", "127.0.0.1:0", "[::1]:0") as sockets:
        assert [one.getsockname()[0] for one in sockets] == ["127.0.0.2", "127.0.0.1", "::1"]


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("bind", [":0", "a-name:0"])
def test_system_without_ipv6(monkeypatch: pytest.MonkeyPatch, bind: str, number: int) -> None:
    """Where the kernel has no IPv6, but names addresses of it, IPv4 alone is listened on; [::1] itself is refused."""

    class Without(socket.socket):
        def bind(self, address: Any) -> None:
            if ":" in address[0]:
                raise OSError(number, os.strerror(number))
            super().bind(address)

    rows: list[Any] = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::", 0, 0, 0)),
    ]
    monkeypatch.setattr(socket, "socket", Without)
    with monkeypatch.context() as names:
        names.setattr(socket, "getaddrinfo", lambda *_, **__: rows)

        with opened(bind) as sockets:
            assert hosts(sockets) == {(socket.AF_INET, "0.0.0.0")}
    assert refusal("[::1]:0") == f"quart_ots: --bind [::1]:0: {os.strerror(number)}"


def test_taken_port(taken: int) -> None:
    """A port that another process listens on is told in a line, and what was opened before is closed."""
    with opened("127.0.0.1:0") as sockets:
        free = sockets[0].getsockname()[1]

    line = refusal(f"127.0.0.1:{free}", f"127.0.0.1:{taken}")

    assert line == f"quart_ots: --bind 127.0.0.1:{taken}: Address already in use"
    assert not connects(socket.AF_INET, "127.0.0.1", free)


@IPV6
def test_port_that_is_taken_in_one_family() -> None:
    """With an empty host, a port that is taken in either family is refused: half a service would not be noticed."""
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        with socket.socket(family, socket.SOCK_STREAM) as other:
            if family == socket.AF_INET6:
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            other.bind((host, 0))
            other.listen()

            assert refusal(f":{other.getsockname()[1]}").endswith("Address already in use")


@pytest.mark.parametrize(
    ("bind", "told"),
    [
        ("192.0.2.1:0", "192.0.2.1:0: Cannot assign requested address"),
        ("no-such-host.invalid:80", "no-such-host.invalid:80: "),
        ("a..b:80", "a..b:80: not a name"),
        (f"{'a' * 64}.example:80", "not a name"),
    ],
)
def test_address_of_another_machine(bind: str, told: str) -> None:
    """An address that is not this machine's, and a name that is none, are told in a line."""
    assert told in refusal(bind)


@pytest.mark.parametrize(
    "bind",
    ["", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", ":²", ":" + "0" * 5000],
)
def test_malformed(bind: str) -> None:
    """What is no host and port is refused with an example of one."""
    assert "must be HOST:PORT, such as 127.0.0.1:8080 or [::]:8080" in refusal(bind)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
@pytest.mark.parametrize(
    ("bind", "family"), [("127.0.0.1:0", socket.AF_INET), pytest.param("[::1]:0", socket.AF_INET6, marks=IPV6)]
)
def test_connections_inherit_the_timeout(bind: str, family: int) -> None:
    """A client that takes no answer loses its connection: what a socket accepts has the kernel's limit on that."""
    with opened(bind) as (listening,), socket.create_connection(listening.getsockname()[:2]) as client:
        accepted, _ = listening.accept()
        with accepted:
            limits = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for one in (listening, accepted)]
            nodelay = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        assert client.family == family
    assert limits == [USER_TIMEOUT, USER_TIMEOUT]
    assert nodelay


@pytest.fixture
async def stopped(settings: Settings, memory: None) -> AsyncIterator[asyncio.Future[Any]]:
    """What is done when an app that serves, by the server of its own, tells that server to stop listening."""
    # Else the signals would end the tests.
    assert threading.current_thread() is threading.main_thread()
    app = create_app(settings)
    stop: Stop = app.extensions[serve.EXTENSION]
    stopped = asyncio.ensure_future(stop.trigger()())
    async with app.test_app():
        yield stopped


async def until(condition: Callable[[], bool]) -> None:
    """Return when a condition holds."""
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal(stopped: asyncio.Future[Any], number: int) -> None:
    """Without DRAIN, SIGTERM and Ctrl-C alike stop the listening at once."""
    os.kill(os.getpid(), number)

    await stopped


@pytest.mark.parametrize("settings", [{"drain": 300}], indirect=True)
async def test_second_signal(stopped: asyncio.Future[Any], caplog: pytest.LogCaptureFixture) -> None:
    """The first signal begins to drain, the second cuts that short."""
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: "draining: serving for 300 s more, but not ready" in caplog.text)
    assert not stopped.done()

    os.kill(os.getpid(), signal.SIGTERM)

    await stopped


@pytest.mark.parametrize("settings", [{"drain": 1}], indirect=True)
async def test_drain_ends(stopped: asyncio.Future[Any], caplog: pytest.LogCaptureFixture) -> None:
    """One signal is enough: after DRAIN seconds the listening stops."""
    os.kill(os.getpid(), signal.SIGTERM)

    await stopped

    assert "draining: serving for 1 s more, but not ready" in caplog.text


async def test_signal_under_another_server(app: Quart) -> None:
    """Another server, which has SIGINT to itself, is told by that."""
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)

    os.kill(os.getpid(), signal.SIGTERM)

    await interrupted.wait()


async def test_word_from_the_parent_process(settings: Settings, memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker process of Hypercorn's, the event that its parent sets begins the stop."""
    worker = SimpleNamespace(_kwargs={"shutdown_event": threading.Event()}, name="worker")
    monkeypatch.setattr(multiprocessing, "current_process", lambda: worker)
    app = create_app(settings)
    async with app.test_app():
        client = app.test_client()
        assert (await client.get("/health/ready")).status_code == 200

        worker._kwargs["shutdown_event"].set()

        while (ready := await client.get("/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (await ready.get_json(force=True))["type"] == "urn:quart-ots:problem:draining"


async def test_grace_is_over(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is slow to send its request is not waited for longer than GRACE, and is told."""
    monkeypatch.setattr(serve, "GRACE", 0.01)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    call = Call(app, "POST", "/generate")

    os.kill(os.getpid(), signal.SIGTERM)
    await call.end()

    assert call.status == 503
    assert call.json["type"] == "urn:quart-ots:problem:draining"
