"""What is measured beside creates and reads a second: each function a section of bench/results.json."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import bson
from pymongo import MongoClient

from bench.health import crowded, watch
from bench.pace import Answer, Question, paced, percentile
from bench.rates import Stand, hash_all
from bench.stand import CREATE, cpu_seconds, creates, reads, resident
from quart_ots.ops.database import OPTIONS
from tests.client import LOST, request
from tests.mongod import Mongod
from tests.service import ROOT, Service

SIZES = (1_000, 10_000, 100_000, 1_000_000)
# Seconds between two reads of the open loop: far from what the service can do.
READ_INTERVAL = 0.025
# Seconds in which the database has to come to rest.
SETTLED = 120
DEPENDENCIES = (
    "hypercorn, uvloop, quart, quart_schema, quart_rate_limiter, pydantic, beanie, motor.motor_asyncio, pymongo, "
    "bcrypt, cryptography.hazmat.primitives.ciphers.aead, prometheus_client, structlog, click, flask_swagger_ui"
)


def median_by_key(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each column."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def under_load(folder: Path, rounds: int = 3, seconds: float = 6) -> dict[str, Any]:
    """Measure the p99 of /health/live and of a look at a waiting secret, idle and while the pool is full."""

    async def measure(service: Service) -> dict[str, dict[str, float]]:
        (created,) = await paced(service.url, [("POST", "/generate", CREATE)], 1)
        path = f"/secrets/{_keys(created)['secret_key']}"
        questions: list[Question] = [("GET", "/health/live", None), ("GET", path, None)]
        idle = await watch(service.url, seconds, questions)
        async with crowded(service.url, seconds):
            full = await watch(service.url, seconds, questions)
        assert {answer.status for own in idle + full for answer in own} == {200}
        rows = {}
        for name, calm, busy in zip(("live", "status"), idle, full, strict=True):
            idle_p99, full_p99 = percentile(calm, 99), percentile(busy, 99)
            rows[name] = {"idle_p99": idle_p99, "full_p99": full_p99, "ratio": full_p99 / idle_p99}
        return rows

    with Stand(folder, 10, bare=False, queue=100) as stand:
        told = [asyncio.run(measure(stand.service)) for _ in range(rounds)]
    return {name: median_by_key([one[name] for one in told]) for name in told[0]}


def _statuses(answers: list[Answer]) -> list[int]:
    return sorted({answer.status for answer in answers})


def at_length(folder: Path) -> dict[str, Any]:
    """Measure `memory` while the database is filled for `waiting`: both take minutes, and neither minds the other."""
    folders = [folder / "memory", folder / "waiting"]
    for own in folders:
        own.mkdir()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(memory, folders[0])
        return {"waiting": waiting(folders[1], held.result), "memory": held.result()}


def waiting(folder: Path, quiet: Callable[[], Any], rounds: int = 3, number: int = 50) -> list[dict[str, float]]:
    """Measure reads, open loop, beside so many secrets that wait. By turns, each number in a database of its own.

    Args:
        folder: For all that is written.
        quiet: Called when the databases are filled; returns when the machine has nothing else to do.
        rounds: For each number.
        number: Reads a round.

    """
    mongo = Mongod(folder / "mongod")
    services: list[Service] = []
    try:
        for size in SIZES:
            url = mongo.url.replace("/quart_ots", f"/waiting{size}")
            started = time.monotonic()
            _fill(url, size)
            print(f"  {size:,} secrets in {time.monotonic() - started:.0f} s", flush=True)
            own = folder / str(size)
            own.mkdir()
            services.append(Service(own, {"MONGODB_URL": url, "BCRYPT_COST": "4"}))
        quiet()
        _let_settle(mongo.process.pid)
        times: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(rounds):
            for size, service in zip(SIZES, services, strict=True):
                made = asyncio.run(paced(service.url, creates() * number, READ_INTERVAL))
                assert _statuses(made) == [201]
                created = [_keys(answer) for answer in made]
                answers = asyncio.run(paced(service.url, reads(created), READ_INTERVAL))
                assert _statuses(answers) == [200]
                times[size].append(percentile(answers, 50))
        ratios = {size: [own / few for own, few in zip(times[size], times[SIZES[0]], strict=True)] for size in SIZES}
        return [
            {"waiting": size, "p50": statistics.median(times[size]), "ratio": statistics.median(ratios[size])}
            for size in SIZES
        ]
    finally:
        for service in services:
            service.stop()
        mongo.kill()


def _keys(answer: Answer) -> dict[str, str]:
    return dict(json.loads(answer.body))


def _documents(number: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Make up secrets that wait, as large as those of the load: an envelope and what belongs to it."""
    now = datetime.now(UTC)
    over = now + timedelta(days=7)
    state = {"state": "pending", "attempts_left": 10, "attempted_at": None, "claim": None, "ended_at": None}
    for _ in range(number):
        id_, receipt_id = os.urandom(32).hex(), os.urandom(32).hex()
        times = {"created_at": now, "expires_at": over, "purge_at": over + timedelta(days=7)}
        sealed = {"sealed": os.urandom(321), "key_id": "0" * 16, "expires_at": over}
        yield {"_id": id_, "secret_id": receipt_id, **sealed}, {"_id": receipt_id, "lookup_id": id_, **state, **times}


def _fill(url: str, number: int) -> None:
    options = {**OPTIONS, "journal": False, "socketTimeoutMS": 60_000}
    with MongoClient[dict[str, Any]](url, **options) as client, ThreadPoolExecutor() as pool:
        collections = [client.get_default_database()[name] for name in ("envelopes", "secrets")]
        documents = _documents(number)
        while batch := list(islice(documents, 10_000)):
            halves = map(list, zip(*batch, strict=True))
            # A list, so that both are waited for, and what they raise is raised.
            list(pool.map(lambda one, half: one.insert_many(half, ordered=False), collections, halves))


def _let_settle(pid: int) -> None:
    """Wait until the database has nothing to do: it goes on for a while with what was written to it."""
    deadline, busy = time.monotonic() + SETTLED, True
    while busy:
        assert time.monotonic() < deadline, "the database does not come to rest"
        before = cpu_seconds(pid)
        time.sleep(1)
        busy = cpu_seconds(pid) - before > 0.05


def memory(folder: Path, first: int = 1_000, last: int = 100_000) -> dict[str, float]:
    """Measure the service's memory after so many requests: of all kinds, but most of what is soonest answered."""
    with Stand(folder, 4, bare=False) as stand:
        sent = 0

        def some(seconds: float) -> None:
            nonlocal sent
            create, read = stand.rates(stand.service, 1)
            created = create.answers[len(read.answers) // 2]["secret_key"]
            sent += len(create.answers) + len(read.answers)
            # What was read is looked for as that which waits is. For what can't be a key, no database is asked.
            for path, status, share in ((created, 404, 1), ("none", 404, seconds)):
                sent += len(stand.send(stand.service, [("GET", f"/secrets/{path}", None)], share, status).answers)

        some(1)
        while sent < first:
            some(1)
        early = (sent, resident(stand.service.process.pid))
        while sent < last:
            some(20)
        late = (sent, resident(stand.service.process.pid))
    return {"first_requests": early[0], "first_mb": early[1], "last_requests": late[0], "last_mb": late[1]}


def start(rounds: int = 7) -> dict[str, float]:
    """Time the start of the service to its first answer, with its database there, and the import of what it needs."""
    starts, imports = [], []
    with tempfile.TemporaryDirectory() as name:
        mongo = Mongod(Path(name) / "mongod")
        service = Service(Path(name), {"MONGODB_URL": mongo.url})
        try:
            for _ in range(rounds):
                service.stop()
                started = time.perf_counter()
                service.start(wait=False)
                while not _answers(service.url):
                    time.sleep(0.005)
                starts.append(time.perf_counter() - started)
                service.stop()
                started = time.perf_counter()
                subprocess.run([sys.executable, "-c", f"import {DEPENDENCIES}"], check=True, cwd=ROOT)
                imports.append(time.perf_counter() - started)
        finally:
            service.stop()
            mongo.kill()
    ratio = statistics.median(own / least for own, least in zip(starts, imports, strict=True))
    return {"start": statistics.median(starts), "imports": statistics.median(imports), "ratio": ratio}


def _answers(url: str) -> bool:
    try:
        return request("GET", f"{url}/health/live", seconds=5).status == 200
    except LOST:
        return False


def costs(folder: Path, seconds: float = 3) -> list[dict[str, float]]:
    """Measure creates and reads a second and core, to choose a cost by."""
    rows = []
    for cost in (8, 10, 12):
        own = folder / str(cost)
        own.mkdir()
        with Stand(own, cost, bare=False) as stand:
            create, read = stand.rates(stand.service, seconds)
        cores = os.cpu_count() or 1
        hashes = hash_all(cost, 1)
        rows.append({"cost": cost, "hash_ms": hashes.cpu, "creates": create.rate / cores, "reads": read.rate / cores})
    return rows


def stored() -> dict[str, float]:
    """Return the bytes of a secret's two documents, as BSON, without what the database adds for itself."""
    ((envelope, secret),) = _documents(1)
    return {"envelope": len(bson.encode(envelope)), "secret": len(bson.encode(secret))}
