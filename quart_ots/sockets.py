"""Ends connections whose client takes no answer. The kernel does it, told by the sockets that listen."""

from __future__ import annotations

import os
import socket
import stat
import sys

# Milliseconds that sent bytes may stay unacknowledged, or the client's window shut: TCP_USER_TIMEOUT in Linux's tcp(7).
USER_TIMEOUT = 30_000


async def limit_unread() -> None:
    """Set it on each TCP socket of the process that has no peer: the connections that it accepts inherit it.

    Neither ASGI nor Hypercorn has a place for it, and Quart's RESPONSE_TIMEOUT ends the request alone: the connection
    would stay for as long as its client wants, as asyncio waits for its buffer to be taken.
    """
    if sys.platform != "linux":
        return
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  # numbers, not paths
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            own = socket.socket(fileno=number)
        except OSError:  # closed meanwhile
            continue
        try:
            if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM and _alone(own):
                own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
        finally:
            own.detach()


def _alone(own: socket.socket) -> bool:
    try:
        own.getpeername()
    except OSError:
        return True
    return False
