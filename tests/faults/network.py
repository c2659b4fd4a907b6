"""A proxy between the service and its database that delays, cuts and half-closes, message by message."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import bson

from tests.faults.database import NAMES, Case, targets
from tests.faults.finding import Finding
from tests.faults.stage import staged_on
from tests.mongod import DATABASE, Mongod, ReplicaSet, free_port

OP_MSG = 2013
WATCHED = {"find", "insert", "update", "delete"}
CUTS = (
    "before it is sent",
    "in its midst",
    "before its answer",
    "in its answer's midst",
    "after half a second",
    "half-closed",
)


class Proxy:
    """Hands messages on, but for the one that it is told to spoil.

    Args:
        target: The database's port.

    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = free_port()
        self.spoil: Callable[[], str | None] = lambda: None
        self.spoiled: list[str] = []  # the commands
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve for the time of a block."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for writer in self._open:
                writer.close()
            await asyncio.sleep(0.1)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._open |= {writer, there[1]}
        try:
            while True:
                await self._exchange((reader, writer), there)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for end in (writer, there[1]):
                end.close()
                self._open.discard(end)

    async def _exchange(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Hand on a message and its answer, or answers, where more are announced."""
        message = await read_message(client[0])
        command = command_of(message)
        cut = self.spoil() if command in WATCHED else None
        if cut:
            self.spoiled.append(command)
        if cut == "before it is sent":
            raise ConnectionResetError
        if cut == "in its midst":
            server[1].write(message[: len(message) // 2])
            raise ConnectionResetError
        if cut == "after half a second":
            await asyncio.sleep(0.5)
        server[1].write(message)
        if cut == "half-closed":
            client[1].write_eof()
        answer = await read_message(server[0])
        if cut in ("before its answer", "half-closed"):
            raise ConnectionResetError
        if cut == "in its answer's midst":
            client[1].write(answer[: len(answer) // 2])
            await client[1].drain()
            raise ConnectionResetError
        client[1].write(answer)
        while more_to_come(answer):
            answer = await read_message(server[0])
            client[1].write(answer)
            await client[1].drain()  # raises when it has gone


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Read one message of MongoDB's wire protocol, which begins with its length."""
    head = await reader.readexactly(16)
    return head + await reader.readexactly(struct.unpack_from("<i", head)[0] - 16)


def command_of(message: bytes) -> str:
    """Return a message's command, the first member of the section of kind 0; "" for what is no OP_MSG."""
    if struct.unpack_from("<i", message, 12)[0] != OP_MSG or message[20] != 0:
        return ""
    (length,) = struct.unpack_from("<i", message, 21)
    document: dict[str, Any] = bson.decode(message[21 : 21 + length])
    return next(iter(document))


def more_to_come(message: bytes) -> bool:
    """Return whether the server announces another answer (flag bit 1 of OP_MSG), as its heartbeats do."""
    opcode, flags = struct.unpack_from("<iI", message, 12)
    return opcode == OP_MSG and bool(flags & 2)


async def network(on_set: bool = True, cuts: Sequence[str] = CUTS, operations: Sequence[str] = NAMES) -> Finding:
    """Spoil each command of each operation in each way."""
    kind = "a replica set" if on_set else "a standalone, where the driver does not retry"
    finding = Finding(
        f"a broken connection to the database ({kind}) neither loses a secret nor shows it twice",
        f"a proxy cuts each command of each operation: {', '.join(cuts)}",
    )
    seen: Counter[str] = Counter()
    delivered = 0
    with contextlib.ExitStack() as stack:
        stage = await asyncio.to_thread(stack.enter_context, staged_on(on_set))
        database, login = await asyncio.to_thread(written_to, stage.database)
        proxy = Proxy(database.port)
        async with proxy.serving():
            url = f"mongodb://{login}127.0.0.1:{proxy.port}/{DATABASE}?directConnection=true&authSource=admin"
            await asyncio.to_thread(stage.add_service, url)
            for operation, index in targets(operations):
                for cut in cuts:
                    case = await asyncio.to_thread(Case, stage, operation, finding, f"cut {cut} at command {index + 1}")
                    countdown = itertools.chain([None] * index, [cut], itertools.repeat(None))
                    proxy.spoil, proxy.spoiled = countdown.__next__, []
                    answer = await asyncio.to_thread(case.act)
                    proxy.spoil = lambda: None
                    case.expect(proxy.spoiled == [operation.commands[index]], f"cut were {proxy.spoiled}")
                    await asyncio.to_thread(stage.service.wait_until_ready)
                    await asyncio.to_thread(case.judge, answer, seen)
                    if operation.name == "read" and index == 2:
                        # The claim: its id settles whose it was, so the reader gets the secret whatever was cut.
                        case.expect(answer.status == 200, "a cut claim lost the secret")
                        delivered += answer.status == 200
            await asyncio.to_thread(stack.close)
    finding.note = (
        ", ".join(f"{number} times {status}" for status, number in sorted(seen.items()))
        + f"; a cut claim was answered with the secret {delivered} of {len(cuts)} times"
    )
    return finding


def written_to(database: Mongod | ReplicaSet) -> tuple[Mongod, str]:
    """Return the member that clients write to, and the beginning of its URLs, with the password."""
    if isinstance(database, Mongod):
        return database, ""
    user, password = database.credentials
    return database.wait_for_primary(), f"{user}:{password}@"
