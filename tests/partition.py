"""Proxies before the members of a replica set, which cut some off from others: `tests.mongod` runs them.

A member knows the others by the addresses of their proxies, and so do clients; a proxy tells them apart by the process
that holds the other end of a connection (/proc, so Linux alone). A cut closes nothing, as lost packets would not:
bytes and new connections wait until it is healed.

    python -m tests.partition '[[PORT, TARGET_PORT], ...]'

Each line on standard input is {"pids": [...], "cut": [[origin, target], ...]}, and is answered when it is in effect. An
origin is the place of a process among the pids, where the members come first, or -1 for everyone else. The end of the
input ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
from pathlib import Path

import uvloop


class Proxies:
    """All proxies of a set."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self.pairs = pairs
        self.pids: list[int] = []
        self.cut: set[tuple[int, int]] = set()
        self.passable: dict[tuple[int, int], asyncio.Event] = {}

    async def serve(self) -> None:
        """Serve until the input ends."""
        for number, (port, _) in enumerate(self.pairs):
            await asyncio.start_server(functools.partial(self._accept, number), "127.0.0.1", port, backlog=4096)
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer
        )
        async for line in orders:
            order = json.loads(line)
            self.pids = order["pids"]
            self.cut = {(origin, target) for origin, target in order["cut"]}
            for pair, event in self.passable.items():
                event.clear() if pair in self.cut else event.set()
            print("done", flush=True)  # noqa: T201

    async def _accept(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port, target = self.pairs[number]
        passable = self._passable((self._origin(writer.get_extra_info("peername")[1], port), number))
        await passable.wait()
        try:
            there = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, there[1], passable), pump(there[0], writer, passable))

    def _passable(self, pair: tuple[int, int]) -> asyncio.Event:
        """Return what is set while bytes pass between the two."""
        if pair not in self.passable:
            self.passable[pair] = asyncio.Event()
            if pair not in self.cut:
                self.passable[pair].set()
        return self.passable[pair]

    def _origin(self, peer: int, port: int) -> int:
        """Find which of the processes, if any, holds the other end of a connection."""
        ends = [f"0100007F:{number:04X}" for number in (peer, port)]
        for _ in range(5):  # a line may be missed while others come and go
            lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
            for inode in (words[9] for words in lines if words[1:3] == ends):
                for number, pid in enumerate(self.pids):
                    if holds(pid, f"socket:[{inode}]"):
                        return number
                return -1
        return -1


def holds(pid: int, name: str) -> bool:
    """Return whether a process has something open."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == name:  # noqa: PTH115  # some 100 for each connection
                    return True
    return False


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passable: asyncio.Event) -> None:
    """Hand on bytes, while they pass, and then the end."""
    try:
        while data := await reader.read(65536):
            await passable.wait()
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    await passable.wait()
    writer.close()


async def main() -> None:
    """Run the proxies that the command asks for."""
    await Proxies(json.loads(sys.argv[1])).serve()


if __name__ == "__main__":
    uvloop.run(main())
