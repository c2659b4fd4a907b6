"""Metrics in Prometheus's formats: at /metrics, or on a port of their own."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.exposition import choose_encoder
from quart import Blueprint, Response, request
from quart_schema import hide

from .. import metrics
from ..settings import StartError, read_bind, variable

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@hide
async def show_metrics() -> Response:
    """Return the metrics of this process."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(REGISTRY), content_type=content_type)


def name_build(version: str) -> None:
    """Set the metric that names what runs."""
    metrics.BUILD.labels(version, platform.python_version()).set(1)


def serve(bind: str) -> Callable[[], None]:
    """Serve the metrics on a port of their own, in threads: also while the event loop is stuck.

    Args:
        bind: The setting METRICS_BIND.

    Returns:
        A function that stops it, and blocks until it has stopped.

    Raises:
        StartError: The port is taken.

    """
    host, port = read_bind(bind)
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise StartError(f"{variable('metrics_bind')}: {error.strerror}") from None
    return partial(_stop, server, thread)


def _stop(server: object, thread: object) -> None:
    server.shutdown()  # type: ignore[attr-defined]  # prometheus_client names neither type
    server.server_close()  # type: ignore[attr-defined]
    thread.join()  # type: ignore[attr-defined]
