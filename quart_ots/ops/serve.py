"""Serving by Hypercorn on sockets of our own, and how a stop goes: drain, stop, end.

A stop begins with SIGTERM, or with SIGINT under `serve`. For DRAIN seconds, everything is still served, but
/health/ready says 503, so that a load balancer turns away; a second signal cuts that short. Then the server stops
listening, requests that wait for a hashing slot are told 503 at once, and what has been begun is finished. After GRACE
seconds the requests that are left, such as those of slow clients, are dropped: each is answered, none claims a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import multiprocessing
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from quart import Quart

from ..edge.request import Requests
from ..settings import StartError
from ..vault.errors import DrainingError
from ..vault.pool import Pool

if sys.platform != "win32":
    import uvloop

# Seconds that requests in flight have after the server has stopped listening.
GRACE = 7
# Seconds between two looks at whether Hypercorn's parent process has been told to stop.
POLL = 0.1
# Milliseconds that sent bytes may stay unacknowledged, or the client's window closed, before the kernel ends the
# connection: a client that reads no answer cannot keep it. TCP_USER_TIMEOUT in Linux's tcp(7).
USER_TIMEOUT = 30_000
# What a system without IPv6 answers, which may still name addresses of it.
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
# Connections that the kernel queues while the event loop is busy.
BACKLOG = 1024
EXTENSION = "quart_ots.stop"

logger = logging.getLogger("quart_ots")


class Stop:
    """How far the service is on its way to its end.

    Args:
        drain: Seconds to serve on while /health/ready says 503.
        pool: Told to send away those who wait.
        requests: Those in flight, dropped when GRACE is over.

    """

    def __init__(self, drain: int, pool: Pool, requests: Requests) -> None:
        self._drain = drain
        self._pool = pool
        self._requests = requests
        self._draining = False
        self._stopped: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Raise DrainingError once a stop has begun."""
        if self._draining:
            raise DrainingError

    def trigger(self) -> Callable[[], Awaitable[Any]]:
        """Return a function that waits until the server is to stop listening: it leaves all signals to the app then."""
        self._stopped = asyncio.Event()
        return self._stopped.wait

    def take_signals(self) -> None:
        """Take SIGTERM from the server, which would stop listening at once, and know nothing of the pool's line.

        With worker processes, Hypercorn's parent gets the signal and tells them by an event that the app does not see.
        """
        loop = asyncio.get_running_loop()
        ours = (signal.SIGTERM, signal.SIGINT) if self._stopped is not None else (signal.SIGTERM,)
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            for number in ours:
                loop.add_signal_handler(number, self.begin)
        event = getattr(multiprocessing.current_process(), "_kwargs", {}).get("shutdown_event")
        if event is not None:
            self._polling = asyncio.ensure_future(self._poll(event))

    async def _poll(self, event: Any) -> None:
        while not event.is_set():
            await asyncio.sleep(POLL)
        self._stop()

    def begin(self) -> None:
        """Begin to stop: drain first; where that has begun, or takes no time, stop."""
        if self._draining or not self._drain:
            self._end()
            return
        self._draining = True
        logger.warning("draining: serving for %d s more, but not ready", self._drain)
        self._timer = asyncio.get_running_loop().call_later(self._drain, self._end)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()  # where a second signal has cut the drain short
        self._stop()
        if self._stopped is not None:
            self._stopped.set()
        else:
            os.kill(os.getpid(), signal.SIGINT)  # the same as SIGTERM to Hypercorn, which still has it

    def _stop(self) -> None:
        self._draining = True
        self._pool.stop()
        asyncio.get_running_loop().call_later(GRACE, self._requests.end)


def config() -> Config:
    """Return Hypercorn's limits, each chosen on purpose; docs/operations.md has them too.

    Hypercorn does not limit connections: the limit on open files does.
    """
    config = Config()
    # Seconds that a connection may be idle, and that a request's head may take to arrive.
    config.keep_alive_timeout = 5
    # Requests on one connection; then it is closed, so that clients spread over the processes again.
    config.keep_alive_max_requests = 1000
    # Bytes of a request's head. A key takes 43, and all that a client here needs to send some hundred.
    config.h11_max_incomplete_size = 16_384
    config.h2_max_header_list_size = 16_384
    # Requests at once on one HTTP/2 connection. More would only wait for the hashing threads.
    config.h2_max_concurrent_streams = 100
    config.backlog = BACKLOG
    config.graceful_timeout = GRACE
    # The answer says nothing of the software behind it.
    config.include_server_header = False
    return config


def open_sockets(binds: Sequence[str]) -> list[socket.socket]:
    """Return listening sockets for addresses such as 127.0.0.1:8080, [::1]:8080, localhost:8080 or :8080.

    A name is bound at each of its addresses, an empty host at all addresses of both IP families; where the system has
    one family alone, at those of that.

    Raises:
        StartError: An address is malformed, taken or not this machine's.

    """
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for bind in binds:
            host, colon, port = bind.rpartition(":")
            host = host.removeprefix("[").removesuffix("]")
            if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
                raise StartError(f"--bind must be HOST:PORT, such as 127.0.0.1:8080 or [::]:8080, not {bind!r}")
            try:
                found = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            except (OSError, UnicodeError) as error:
                raise StartError(f"--bind {bind}: {getattr(error, 'strerror', 'not a name')}") from None
            for family, _, _, _, address in dict.fromkeys(found):
                try:
                    sockets.append(undo.enter_context(_listen(family, address)))
                except OSError as error:
                    if family == socket.AF_INET6 and error.errno in NO_IPV6 and len({one[0] for one in found}) > 1:
                        continue
                    raise StartError(f"--bind {bind}: {error.strerror}") from None
        undo.pop_all()
    return sockets


def _listen(family: int, address: Any) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The connections that it accepts inherit these.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def serve(app: Quart, binds: Sequence[str]) -> None:
    """Serve an app until it is stopped by SIGTERM or SIGINT.

    Args:
        app: As create_app returns it.
        binds: Where to listen, see open_sockets.

    Raises:
        StartError: It cannot start.

    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listening = open_sockets(binds)
    hypercorn = config()
    hypercorn.bind = [f"fd://{one.detach()}" for one in listening]
    stop: Stop = app.extensions[EXTENSION]

    async def main() -> None:
        await hypercorn_serve(app, hypercorn, shutdown_trigger=stop.trigger())

    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    # All is done; a signal that comes twice would end the process with a status other than 0 on its last way.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
