"""The limiter's memory, and what an attacker with a whole network has of it."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address

import aiohttp

from quart_ots.edge.clients import budget_of
from quart_ots.edge.limits import MAX_CLIENTS, BoundedStore
from tests.faults.finding import Finding
from tests.faults.stage import staged

# Bytes, as limits.py states them.
STATED = 36_000_000
BUDGET = 600


async def memory(addresses: int = 1_000_000) -> Finding:
    """Come from so many networks, all of them with budgets in use."""
    finding = Finding(
        f"the limiter's memory is bounded: {MAX_CLIENTS:,} budgets, {STATED // 10**6} MB",
        f"{addresses:,} IPv6 networks, each with a budget that stays in use, set in the limiter's store",
        addresses,
    )
    store = BoundedStore()
    tracemalloc.start()
    try:
        for number in range(addresses):
            budget = budget_of(str(IPv6Address(number << 64)), (), 0)
            # A time of its own, as the limiter gives each.
            await store.set(f"quart_ots-secrets-600-{budget}", datetime.now(UTC) + timedelta(hours=1))
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    finding.expect(peak <= STATED, f"{peak:,} bytes")
    finding.note = f"{size / 1e6:.1f} MB in the end, {peak / 1e6:.1f} MB at most"
    return finding


async def one_network(requests: int = 2000) -> Finding:
    """Rotate inside one IPv6 /64, over HTTP, behind a proxy that is trusted; and forge what is left of its entry."""
    finding = Finding(
        "an attacker rotating inside one IPv6 /64 has one budget",
        f"requests from {requests:,} addresses of a /64 through one trusted proxy, with forged entries before it",
        requests,
    )
    statuses: Counter[int] = Counter()
    with staged(RATE_LIMIT=str(BUDGET), TRUSTED_PROXIES="1") as stage:
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=20)) as session:
            started = loop.time()

            async def ask(number: int) -> None:
                own = IPv6Address(0x20010DB8 << 96 | number * 0x9E3779B97F4A7C15 % 2**64)
                headers = {"X-Forwarded-For": f"198.51.100.{number % 256}, {own}"}
                async with session.get(f"{stage.service.url}/receipts/none", headers=headers) as answer:
                    statuses[answer.status] += 1

            await asyncio.gather(*(ask(number) for number in range(requests)))
            regained = BUDGET / 60 * (loop.time() - started)
            headers = {"X-Forwarded-For": str(IPv6Address(0x20010DB8_00000001 << 64))}
            async with session.get(f"{stage.service.url}/receipts/none", headers=headers) as answer:
                finding.expect(answer.status == 404, f"another network is told {answer.status}")
    served = statuses[404]
    finding.expect(BUDGET <= served <= BUDGET + regained + 1, f"{served} served")
    finding.expect(set(statuses) <= {404, 429}, f"statuses {set(statuses)}")
    finding.note = f"{served} served: {BUDGET} and what came back meanwhile; {statuses[429]:,} times 429"
    return finding
