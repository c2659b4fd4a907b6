"""The figures that Prometheus reads. Anything may count here; this module knows nothing of who does.

No label holds anything that was sent: routes are templates, methods and commands a fixed set.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

T = TypeVar("T")

# Seconds. bcrypt takes 5 ms at cost 6 and 500 ms at cost 13; requests without it take one or two.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 4, 8)
# Seconds. A database on the same network answers within one, and is given up after five.
DATABASE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client is typed in parts

REQUESTS = Histogram(
    "quart_ots_request_duration_seconds",
    "Requests, from their head to the end of the answer, by route template.",
    ["method", "route", "status"],
    buckets=BUCKETS,
)
SECRETS = Counter(
    "quart_ots_secrets", "Steps in the lives of secrets; `refused` are wrong passphrases, not secrets.", ["step"]
)
for _step in ("created", "read", "burned", "locked", "refused"):
    SECRETS.labels(_step)
KDF_THREADS = Gauge("quart_ots_kdf_threads", "Threads that stretch keys.")
KDF_BUSY = Gauge("quart_ots_kdf_busy", "Keys being stretched.")
KDF_QUEUED = Gauge("quart_ots_kdf_queued", "Requests that wait for a thread.")
KDF_PLACES = Gauge("quart_ots_kdf_places", "Places in all: for hashing and for waiting.")
KDF_REFUSED = Counter("quart_ots_kdf_refused", "Requests refused because the pool was full.")
KDF_DURATION = Histogram("quart_ots_kdf_duration_seconds", "Time that a key took in its thread.", buckets=BUCKETS)
COMMAND_DURATION = Histogram(
    "quart_ots_database_command_duration_seconds",
    "Database commands of requests that were answered, with their wait for a thread of the driver's.",
    ["command"],
    buckets=DATABASE_BUCKETS,
)
COMMAND_FAILURES = Counter("quart_ots_database_failures", "Database commands of requests that failed.", ["command"])
DATABASE_ERRORS = Counter("quart_ots_database_errors", "Requests that the database could not serve.")
RATE_LIMITED = Counter("quart_ots_rate_limited", "Requests over their client's budget.")
BUILD = Gauge("quart_ots_build_info", "1. Its labels name what runs.", ["version", "python"])


class Command:
    """One kind of database command. Not a listener of the driver's, whose events cost as much as all else here."""

    def __init__(self, name: str) -> None:
        self._durations = COMMAND_DURATION.labels(name)
        self._failures = COMMAND_FAILURES.labels(name)

    async def measure(self, answer: Awaitable[T]) -> T:
        """Wait for a command's answer and record its duration; count the command as failed if it raises."""
        started = time.perf_counter()
        try:
            result = await answer
        except BaseException:  # a deadline cancels
            self._failures.inc()
            raise
        self._durations.observe(time.perf_counter() - started)
        return result


FIND, INSERT, UPDATE, DELETE = map(Command, ("find", "insert", "update", "delete"))
