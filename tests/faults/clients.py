"""Clients that are slow, silent or gone, by the hundred: whoever else comes is served, and nothing of theirs stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.faults.api import Api, connected
from tests.faults.finding import Finding
from tests.faults.stage import Stage, lent, staged
from tests.mongod import Mongod
from tests.service import PHRASE, Service

MEGABYTE = 1 << 20
BODY = json.dumps({"secret": "a slow secret", "passphrase": PHRASE}).encode()
HEAD = b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
KINDS = ("silent", "head a byte a second", "body a byte a second", "never reads the answer", "keeps alive")
# Seconds after which the last of them has been cut off, see docs/operations.md.
LONGEST = 75
# Descriptors that the service may have more of afterwards: connections to the database, one for each thread of the
# driver's, of which it has five a core. Some are opened only when that many commands happen to coincide.
SPARE = 10


class Usage(NamedTuple):
    """What a process holds."""

    resident: int  # bytes
    descriptors: int
    threads: int


def usage_of(service: Service) -> Usage:
    """Measure the service's process."""
    proc = Path(f"/proc/{service.process.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    resident = int(status["VmRSS"].split()[0]) * 1024
    return Usage(resident, len(list((proc / "fd").iterdir())), int(status["Threads"]))


async def linger(stage: Stage[Mongod], kind: str) -> None:
    """Be one such client until the service ends the connection."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    loop = asyncio.get_running_loop()
    with contextlib.closing(small):
        await loop.sock_connect(small, ("127.0.0.1", stage.service.port))
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            match kind:
                case "head a byte a second":
                    await drip(small, HEAD * 9)
                case "body a byte a second":
                    await loop.sock_sendall(small, HEAD + b"\r\n")
                    await drip(small, BODY[:-1] + b" " * 999)
                case "never reads the answer":
                    # 1.4 MB, more than the buffers take that lie between the two.
                    await loop.sock_sendall(small, b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: h\r\n\r\n" * 4)
                    await asyncio.sleep(2 * LONGEST)  # until it is cancelled
                    return
                case "keeps alive":
                    await loop.sock_sendall(small, b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n")
            while await loop.sock_recv(small, 65_536):
                pass


async def drip(to: socket.socket, data: bytes) -> None:
    """Send a byte a second, and stop when the other end has closed or answered."""
    loop = asyncio.get_running_loop()
    answer = asyncio.create_task(loop.sock_recv(to, 1))
    for index in range(len(data)):
        await loop.sock_sendall(to, data[index : index + 1])
        await asyncio.wait([answer], timeout=1)
        if answer.done():
            break
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)


async def slow(
    number: int = 500,
    kinds: tuple[str, ...] = KINDS,
    seconds: float = LONGEST,
    lives: int = 300,
    on: Stage[Mongod] | None = None,
) -> Finding:
    """Hold slow connections while a normal client works, and see that they are ended and leave nothing."""
    finding = Finding(
        "slow clients hold up nobody, and are cut off",
        f"{number} connections at once: {', '.join(kinds)}; a normal client meanwhile. A trial is a connection",
        number,
    )
    with lent(on, staged()) as stage:
        before = await warm_up(stage, lives)
        crowd = [asyncio.create_task(linger(stage, kinds[index % len(kinds)])) for index in range(number)]
        started, rounds, worst, most = time.monotonic(), 0, 0.0, before
        async with connected(stage.service) as api:
            while time.monotonic() - started < seconds:
                at = time.monotonic()
                live = await api.ask("GET", "/health/live")
                worst = max(worst, time.monotonic() - at)
                keys = (await api.generate("a normal secret")).body
                read = await api.read(keys.get("secret_key", "none"))
                finding.expect((live.status, read.status) == (200, 200), f"live {live.status}, read {read.status}")
                most = Usage(*map(max, most, usage_of(stage.service)))
                rounds += 1
                await asyncio.sleep(0.5)
        # Asked of the service: who never reads does not notice.
        still_open = usage_of(stage.service).descriptors - before.descriptors
        finding.expect(still_open <= SPARE, f"{still_open} connections are still open")
        for client in crowd:
            client.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await look_whether_all_is_returned(stage, before, finding)
        after = usage_of(stage.service)
    finding.note = (
        f"{rounds} rounds of the normal client went well, the slowest health {worst * 1000:.0f} ms; descriptors "
        f"{before.descriptors}, {most.descriptors} at most, {after.descriptors} after; RSS "
        f"{before.resident / MEGABYTE:.0f}, {most.resident / MEGABYTE:.0f}, {after.resident / MEGABYTE:.0f} MB"
    )
    return finding


async def look_whether_all_is_returned(stage: Stage[Mongod], before: Usage, finding: Finding) -> None:
    """Wait for descriptors and threads to be what they were, and for the memory to be near it."""
    deadline = time.monotonic() + 30
    while usage_of(stage.service).descriptors > before.descriptors + SPARE and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    after = usage_of(stage.service)
    finding.expect(
        after.descriptors <= before.descriptors + SPARE, f"{after.descriptors - before.descriptors} descriptors left"
    )
    finding.expect(after.threads <= before.threads + 5, f"{after.threads - before.threads} threads left")
    # What the allocator keeps for the next time; a leak of 7 KB for each of 10,000 requests would show.
    finding.expect(after.resident <= before.resident + 64 * MEGABYTE, "memory left")


async def aborted(
    number: int = 10_000, together: int = 100, lives: int = 300, on: Stage[Mongod] | None = None
) -> Finding:
    """Send requests and hang up at once, at any point of them."""
    finding = Finding(
        "requests that are aborted leave nothing behind",
        "a create, a reading, a guess, a look or half a request, then the connection closed or reset at once; a trial "
        "is a request",
        number,
    )
    state: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    with lent(on, staged()) as stage:
        waiting = stage.service.generate("a waiting secret")
        path = f"/secrets/{waiting['secret_key']}".encode()
        # By turns they are read and guessed at, ten times each.
        victims = [stage.service.generate("a victim's secret") for _ in range(max(2, number // 50))]
        requests = (
            HEAD + b"\r\n" + BODY,
            HEAD + b"\r\n" + BODY[:20],
            HEAD[:30],
            b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path,
        )

        def attempt(turn: int) -> bytes:
            """Read the victim whose turn it is, or guess at it."""
            phrase = "a wrong guess" if turn % len(victims) % 2 else PHRASE
            body = json.dumps({"passphrase": phrase}).encode()
            path = f"/secrets/{victims[turn % len(victims)]['secret_key']}".encode()
            head = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            return head % (path, len(body)) + body

        async with connected(stage.service) as api:
            before = await warm_up(stage, lives)
            places = asyncio.Semaphore(together)

            async def abort(index: int) -> None:
                async with places:
                    with contextlib.closing(socket.socket()) as client:
                        client.setblocking(False)
                        if index % 2:  # a reset instead of an end
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        await loop.sock_connect(client, ("127.0.0.1", stage.service.port))
                        kind, turn = index % (len(requests) + 1), index // (len(requests) + 1)
                        await loop.sock_sendall(client, requests[kind] if kind < len(requests) else attempt(turn))
                        await asyncio.sleep(index % 3 / 100)

            for start in range(0, number, 500):
                await asyncio.gather(*(abort(index) for index in range(start, min(start + 500, number))))
                live = await api.ask("GET", "/health/live")
                finding.expect(live.status == 200, f"live {live.status}")
            await look_whether_all_is_returned(stage, before, finding)
            after = usage_of(stage.service)
            read = await api.read(waiting["secret_key"])
            finding.expect(read.body == {"secret": "a waiting secret"}, f"a waiting secret answers {read.status}")
            for index, keys in enumerate(victims):
                told = (await api.receipt(keys["receipt_key"])).body["state"]
                read = await api.read(keys["secret_key"])
                state[told] += 1
                finding.expect(told in ("pending", "locked" if index % 2 else "read"), f"a victim is {told}")
                finding.expect(read.status == (200 if told == "pending" else 404), f"{told}, it answers {read.status}")
        finding.expect(" 500 " not in stage.service.logged(), "a 500 in the log")
        finding.expect("unexpected" not in stage.service.logged(), "an unexpected exception in the log")
    finding.note = (
        f"descriptors {before.descriptors} and then {after.descriptors}, threads {before.threads} and {after.threads}, "
        f"RSS {before.resident / MEGABYTE:.0f} and {after.resident / MEGABYTE:.0f} MB; of {len(victims)} secrets "
        f"{state['read']} were read by who hung up, {state['locked']} locked, {state['pending']} waited on"
    )
    return finding


async def warm_up(stage: Stage[Mongod], number: int) -> Usage:
    """Let the service make the threads and connections that it keeps, and measure it at rest."""

    async def live_once(api: Api) -> None:
        keys = (await api.generate("warm-up secret")).body
        await asyncio.gather(
            api.look(keys["secret_key"]), api.receipt(keys["receipt_key"]), api.fetch("/docs/swagger-ui-bundle.js")
        )
        await api.read(keys["secret_key"])

    async with connected(stage.service) as api:
        await asyncio.gather(*(live_once(api) for _ in range(number)))
    deadline, usage, settled = time.monotonic() + 30, usage_of(stage.service), 0
    while settled < 4 and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        before, usage = usage, usage_of(stage.service)
        settled = settled + 1 if usage.descriptors == before.descriptors else 0
    return usage
