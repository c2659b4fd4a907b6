"""Connections whose client takes no answer are ended."""

import os
import socket

from quart_ots.sockets import USER_TIMEOUT, limit_unread


def timeout_of(own: socket.socket) -> int:
    """Ask the kernel."""
    return own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


async def test_connections_inherit_the_limit() -> None:
    """The limit is on the sockets that listen and on what they accept from then on, and no other; all stay open."""
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX) as unix:
        with socket.create_connection(listening.getsockname()) as before:
            await limit_unread()
            with socket.create_connection(listening.getsockname()) as after:
                first, second = listening.accept()[0], listening.accept()[0]
                with first, second:
                    limits = [timeout_of(one) for one in (listening, second, first, before, after)]

        assert limits == [USER_TIMEOUT, USER_TIMEOUT, 0, 0, 0]
        unix.getsockname()
    os.close(read)
    os.close(write)
