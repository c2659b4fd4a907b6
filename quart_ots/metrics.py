"""What Prometheus is told, and how. Anything may count here; nothing here knows who does.

With several worker processes, each would tell of itself alone. prometheus_client's multiprocess mode, which the
variable PROMETHEUS_MULTIPROC_DIR turns on, keeps the figures in files there, and whoever is asked adds them up.

No label holds anything that was sent: routes are templates, methods and commands those known beforehand.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

# prometheus_client looks for this folder when it is imported, and fails if it is not there.
if FOLDER := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    Path(FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
    multiprocess,
)
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder
from prometheus_client.registry import Collector
from quart import Quart

from .config import PREFIX, end_with, read_bind

T = TypeVar("T")

# Seconds. Bcrypt takes 5 ms at cost 6 and 500 ms at cost 13; what needs none answers in one or two.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 4, 8)
# Seconds. A database on the same network answers within one, and is given up after five.
DATABASE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
# Seconds in which whoever asks on the port of its own has to send the request.
SCRAPE_TIMEOUT = 5

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client is typed in parts
if FOLDER:
    # The gauges of a dead process that had the same id.
    multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]  # as above

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
KDF_THREADS = Gauge("quart_ots_kdf_threads", "Threads that stretch keys.", multiprocess_mode="livesum")
KDF_BUSY = Gauge("quart_ots_kdf_busy", "Keys being stretched.", multiprocess_mode="livesum")
KDF_QUEUED = Gauge("quart_ots_kdf_queued", "Places taken by those who are not at it.", multiprocess_mode="livesum")
KDF_PLACES = Gauge("quart_ots_kdf_places", "Places there are, for threads and queue.", multiprocess_mode="livesum")
KDF_REFUSED = Counter("quart_ots_kdf_refused", "Requests told that the pool is full.")
KDF_DURATION = Histogram("quart_ots_kdf_duration_seconds", "Time a key took in its thread.", buckets=BUCKETS)
COMMAND_DURATION = Histogram(
    "quart_ots_database_command_duration_seconds",
    "Database commands of requests that were answered, with their wait for a thread of the driver's.",
    ["command"],
    buckets=DATABASE_BUCKETS,
)
COMMAND_FAILURES = Counter("quart_ots_database_failures", "Database commands of requests that failed.", ["command"])


class Command:
    """A kind of database command. Not a listener of the driver's, whose events cost as much as all else here."""

    def __init__(self, name: str) -> None:
        self._durations = COMMAND_DURATION.labels(name)
        self._failures = COMMAND_FAILURES.labels(name)

    async def measure(self, answer: Awaitable[T]) -> T:
        """Wait for a command's answer, and measure that; count the command as failed where it raises."""
        started = time.perf_counter()
        try:
            result = await answer
        except Exception:
            self._failures.inc()
            raise
        self._durations.observe(time.perf_counter() - started)
        return result


FIND, INSERT, UPDATE, DELETE = map(Command, ("find", "insert", "update", "delete"))
DATABASE_ERRORS = Counter("quart_ots_database_errors", "Requests that the database could not serve.")
RATE_LIMITED = Counter("quart_ots_rate_limited", "Requests over their client's budget.")
BUILD = Gauge("quart_ots_build_info", "1. Its labels tell what runs.", ["version", "python"], multiprocess_mode="max")


class Workers(Collector):
    """The process figures of all workers, added up; of their starts, the first. And the end of dead ones' gauges."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterator[Metric]:
        """Give ProcessCollector's figures."""
        total: dict[str, Metric] = {}
        for pid in {
            int(match[1]) for path in self._folder.glob("*.db") if (match := re.search(r"_(\d+)\.db$", str(path)))
        }:
            if not _lives(pid):
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]  # as above
                continue
            for metric in ProcessCollector(pid=lambda: pid, registry=None).collect():  # noqa: B023  # called at once
                known = total.setdefault(metric.name, metric)
                if known is not metric:
                    (one,), (other,) = known.samples, metric.samples
                    add = min if metric.name.endswith("start_time_seconds") else lambda *values: sum(values)
                    known.samples = [one._replace(value=add(one.value, other.value))]
        yield from total.values()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def registry() -> CollectorRegistry:
    """Give what is told: of this process, or of all that share the folder."""
    if not FOLDER:
        return REGISTRY
    shared = CollectorRegistry()
    shared.register(Workers(FOLDER))
    multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # as above
    return shared


def expose(accept: str) -> tuple[bytes, str]:
    """Write all metrics in the format that an Accept header asks for; give them and their content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry()), content_type


def tell_build(version: str) -> None:
    """Tell what runs."""
    BUILD.labels(version, platform.python_version()).set(1)


def is_lone_worker() -> bool:
    """Say whether this is one of several workers, each of which tells of itself alone."""
    return not FOLDER and multiprocessing.parent_process() is not None


class _Handler(WSGIRequestHandler):
    """Logs nothing: the path is the client's."""

    timeout = SCRAPE_TIMEOUT

    def log_message(self, format: str, *args: object) -> None:  # the name is WSGIRequestHandler's
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    # All workers listen: whichever is asked answers for all.
    allow_reuse_port = bool(FOLDER)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing of a client who hangs up."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve(host: str, port: int) -> WSGIServer:
    """Serve the metrics on a port of their own, in threads: also while the event loop is stuck.

    Raises:
        OSError: The port is taken.

    """
    server = make_server(host, port, make_wsgi_app(registry()), _Server6 if ":" in host else _Server, _Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def init_app(app: Quart, version: str) -> None:
    """Tell what runs and, where METRICS_BIND says so, serve the metrics there while the app serves."""
    tell_build(version)
    server: list[WSGIServer] = []

    async def start() -> None:
        if is_lone_worker():
            app.logger.warning("metrics: of this worker alone; set PROMETHEUS_MULTIPROC_DIR to have those of all")
        if app.config["METRICS_BIND"] is not None:
            host, port = read_bind(app.config["METRICS_BIND"])
            try:
                server.append(serve(host, port))
            except OSError as error:
                raise end_with(f"{PREFIX}_METRICS_BIND: {error.strerror}") from None

    async def stop() -> None:
        for one in server:
            await asyncio.to_thread(one.shutdown)
            one.server_close()

    app.before_serving(start)
    app.after_serving(stop)
