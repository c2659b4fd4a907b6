"""How fast health answers while the pool is full: `make bench-health`.

200 creators of as many addresses keep at it, in a process of their own, each coming back when the pool is full: as
Retry-After says, and up to a second later, so that they do not all come at once. Meanwhile, and before that on the
idle service, /health/live and /health/ready are asked in turn, one connection each time, every 20 ms whatever the
answers take (an open loop: a slow answer does not make for fewer questions). All share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from bench.pace import Answer, Question, paced, percentile
from bench.stand import CREATE
from tests.mongod import Mongod
from tests.service import Service

CREATORS = 200
INTERVAL = 0.02
WARM_UP = 6  # seconds until the pool is full, and has shown how long a key takes
HEALTH: tuple[Question, ...] = (("GET", "/health/live", None), ("GET", "/health/ready", None))


async def create(client: aiohttp.ClientSession, address: str, until: float, statuses: collections.Counter[int]) -> None:
    """Create secrets until a time, politely, as a client with an address of its own."""
    while time.monotonic() < until:
        async with client.post("/generate", json=CREATE, headers={"X-Forwarded-For": address}) as answer:
            await answer.read()
        statuses[answer.status] += 1
        if answer.status == 503:
            pause = int(answer.headers["Retry-After"]) + random.random()
            await asyncio.sleep(min(pause, max(0, until - time.monotonic())))


async def load(url: str, seconds: float) -> None:
    """Let all creators create for a time, and print what they were told."""
    statuses: collections.Counter[int] = collections.Counter()
    # Less than the server's, which would close a connection just as a request goes out on it.
    connector, timeout = aiohttp.TCPConnector(limit=0, keepalive_timeout=2), aiohttp.ClientTimeout(60)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as client:
        until = time.monotonic() + seconds
        addresses = (f"198.51.100.{number}" for number in range(CREATORS))
        await asyncio.gather(*(create(client, address, until, statuses) for address in addresses))
    print(f"\ncreators were answered: {dict(statuses)}")


async def watch(url: str, seconds: float, questions: Sequence[Question] = HEALTH) -> list[list[Answer]]:
    """Ask all by turns for a time; give the answers to each."""
    number = len(questions)
    asked = [questions[index % number] for index in range(int(seconds / INTERVAL))]
    answers = await paced(url, asked, INTERVAL)
    return [answers[index::number] for index in range(number)]


def show(when: str, answers: list[list[Answer]]) -> None:
    """Print a row for each path."""
    for (_, path, _), own in zip(HEALTH, answers, strict=True):
        statuses = dict(collections.Counter(answer.status for answer in own))
        worst = 1000 * max(answer.seconds for answer in own)
        row = (when, path, len(own), *(f"{time:.1f}" for time in (percentile(own, 50), percentile(own, 99), worst)))
        print("|", " | ".join(map(str, row)), "|", statuses, "|", flush=True)


@contextlib.asynccontextmanager
async def crowded(url: str, seconds: float) -> AsyncIterator[None]:
    """Let creators fill the pool, from a process of their own, for so many seconds of a block."""
    command = (sys.executable, "-m", "bench.health", "--load", url, "--seconds", str(seconds + WARM_UP))
    creators = await asyncio.create_subprocess_exec(*command)
    try:
        await asyncio.sleep(WARM_UP)
        yield
        assert await creators.wait() == 0
    finally:
        if creators.returncode is None:
            creators.kill()
            await creators.wait()


async def measure(url: str, seconds: float) -> None:
    """Measure idle, then under load."""
    print("| while | path | asked | p50, ms | p99, ms | worst, ms | statuses |")
    print("|---|---|---|---|---|---|---|")
    show("idle", await watch(url, seconds))
    async with crowded(url, seconds):
        show(f"{CREATORS} creators", await watch(url, seconds))


def main() -> None:
    """Run the service on a database of its own, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--load", metavar="URL", help="be the creators")
    options = parser.parse_args()
    seconds = options.seconds
    if options.load:
        asyncio.run(load(options.load, seconds))
        return
    with tempfile.TemporaryDirectory() as name:
        mongo = Mongod(Path(name) / "mongod")
        settings = {"MONGODB_URL": mongo.url, "BCRYPT_COST": "10", "LOG_LEVEL": "warning", "TRUSTED_PROXIES": "1"}
        service = Service(Path(name), settings)
        try:
            asyncio.run(measure(service.url, seconds))
        finally:
            service.stop()
            mongo.kill()


if __name__ == "__main__":
    main()
