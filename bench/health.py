"""How fast health answers while the pool is full: `make bench-health`.

200 creators keep at it, in a process of their own, each coming back when it is told that the pool is full: as
Retry-After says, and up to a second later, so that they do not all come at once. Meanwhile, and before that on the
idle service, /health/live and /health/ready are asked in turn, one connection each time, every 20 ms whatever the
answers take (an open loop: a slow answer does not make for fewer questions). All share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.service import HYPERCORN, Mongo, Service

CREATORS = 200
INTERVAL = 0.02
WARM_UP = 6  # seconds until the pool is full, and has shown how long a key takes
COMMAND = (*HYPERCORN[:9], "--worker-class", "uvloop", "quart_ots:create_app()")
BODY = {"secret": "a secret", "passphrase": "correct horse battery staple"}


async def create(client: httpx.AsyncClient, until: float, statuses: collections.Counter[int]) -> None:
    """Create secrets until a time, politely."""
    while time.monotonic() < until:
        answer = await client.post("/generate", json=BODY)
        statuses[answer.status_code] += 1
        if answer.status_code == 503:
            pause = int(answer.headers["Retry-After"]) + random.random()
            await asyncio.sleep(min(pause, max(0, until - time.monotonic())))


async def load(url: str, seconds: float) -> None:
    """Let all creators create for a time, and print what they were told."""
    statuses: collections.Counter[int] = collections.Counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        until = time.monotonic() + seconds
        await asyncio.gather(*(create(client, until, statuses) for _ in range(CREATORS)))
    print(f"\ncreators were answered: {dict(statuses)}")


async def ask(url: str, path: str, answers: list[tuple[float, int]]) -> None:
    """Ask once, and note how long the answer took from when the question was due."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    status = int((await reader.read()).split()[1])
    answers.append((time.perf_counter() - started, status))
    writer.close()


async def watch(url: str, seconds: float) -> dict[str, list[tuple[float, int]]]:
    """Ask both by turns for a time."""
    answers: dict[str, list[tuple[float, int]]] = {"/health/live": [], "/health/ready": []}
    asked = []
    for number in range(int(seconds / INTERVAL)):
        path = list(answers)[number % 2]
        asked.append(asyncio.create_task(ask(url, path, answers[path])))
        await asyncio.sleep(INTERVAL)
    await asyncio.gather(*asked)
    return answers


def show(when: str, answers: dict[str, list[tuple[float, int]]]) -> None:
    """Print a row for each path."""
    for path, pairs in answers.items():
        times = sorted(1000 * seconds for seconds, _ in pairs)
        cuts = statistics.quantiles(times, n=100)
        statuses = dict(collections.Counter(status for _, status in pairs))
        row = (when, path, len(times), f"{cuts[49]:.1f}", f"{cuts[98]:.1f}", f"{times[-1]:.1f}", statuses)
        print("|", " | ".join(map(str, row)), "|", flush=True)


async def measure(url: str, seconds: float) -> None:
    """Measure idle, then under load."""
    print("| while | path | asked | p50, ms | p99, ms | worst, ms | statuses |")
    print("|---|---|---|---|---|---|---|")
    show("idle", await watch(url, seconds))
    creators = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.health", "--load", url, "--seconds", str(seconds + WARM_UP)
    )
    await asyncio.sleep(WARM_UP)
    show(f"{CREATORS} creators", await watch(url, seconds))
    await creators.wait()


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
        mongo = Mongo(Path(name))
        settings = {"MONGODB_URL": mongo.url, "BCRYPT_COST": "10", "LOG_LEVEL": "warning"}
        service = Service(Path(name), settings, *COMMAND)
        try:
            asyncio.run(measure(service.url, seconds))
        finally:
            service.stop()
            mongo.kill()


if __name__ == "__main__":
    main()
