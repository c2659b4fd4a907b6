"""quart_ots: one-time secrets as a JSON API. `create_app` is the only place where the parts meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

from quart import Quart

from . import cli, config, db, docs, errors, logs, metrics, observe, ratelimit, routes, sockets
from .drain import Drain
from .kdf import KdfPool
from .schemas import MAX_BODY_BYTES, StrictRequest

__all__ = ["create_app"]
__version__ = "0.1.0"

# As ASGI has them. The docs page has a policy of its own.
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_NAMES = frozenset(name for name, _ in HEADERS)


class App(Quart):
    """A Quart that reads JSON strictly, and whose log holds nothing that was sent."""

    request_class = StrictRequest

    def log_exception(
        self,
        exception_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None],
    ) -> None:
        """Log an unexpected exception without its path and message; see logs.ExceptionFilter for the latter."""
        self.logger.error("unexpected exception", exc_info=exception_info)


def create_app(overrides: Mapping[str, Any] | None = None, clock: Callable[[], datetime] = routes.utc_now) -> Quart:
    """Build the service.

    Args:
        overrides: Settings that win over all other sources, see config.py.
        clock: Gives the time in UTC, to the millisecond.

    Raises:
        StartError: A setting is wrong. It says which, in one line.

    """
    app = App(__name__, static_folder=None)
    # Redirects repeat the path that was sent, with its key.
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        BODY_TIMEOUT=30,  # seconds
        SEND_FILE_MAX_AGE_DEFAULT=None,
        PROPAGATE_EXCEPTIONS=False,  # debug mode would answer with a traceback
    )
    sources = config.load(app, overrides or {})
    logs.install(app.config)
    ring = config.load_key_ring(app.config)
    kdf = KdfPool(app.config["KDF_THREADS"], app.config["KDF_QUEUE"])

    observe.init_app(app, _harden)
    errors.init_app(app)
    docs.init_app(app, __version__)
    app.register_blueprint(routes.blueprint)
    app.register_blueprint(routes.health)
    if app.config["METRICS_BIND"] is None:
        app.register_blueprint(routes.figures)
    ratelimit.init_app(app, limited=routes.blueprint.name)
    database, drain = db.Database(app, ring), Drain(app.config["DRAIN"])
    parts = routes.Parts(ring, kdf, app.config["BCRYPT_COST"], clock, database, drain)
    app.extensions[routes.EXTENSION] = parts
    drain.init_app(app)
    metrics.init_app(app, __version__)
    # In this order: what goes on needs the database and the threads.
    app.after_serving(parts.finish)
    database.init_app(app)
    app.before_serving(sockets.limit_unread)
    app.after_serving(kdf.close)
    logs.init_app(app)
    cli.init_app(app, database, ring, sources)
    return app


def _harden(headers: observe.Headers) -> observe.Headers:
    """Give an answer's headers, and those that every answer carries."""
    kept = [header for header in headers if header[0] not in _NAMES]
    policy = () if any(name == POLICY[0] for name, _ in kept) else (POLICY,)
    return [*kept, *HEADERS, *policy]
