"""quart_ots: one-time secrets as a JSON API. `create_app` is where the parts meet, and where start and stop stand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from quart import Quart

from . import settings as settings_module
from .api import health, openapi, problems, routes
from .api.bodies import MAX_BODY_BYTES
from .api.strict_json import StrictRequest
from .edge import limits, request
from .ops import exposition, logs, serve
from .ops.database import Database
from .settings import Settings, StartError
from .vault import keyring
from .vault.crypto import KeyRing
from .vault.life import Services, utc_now
from .vault.pool import Pool, ThreadsError

__all__ = ["create_app"]
__version__ = "0.1.0"


class App(Quart):
    """A Quart that reads this API's JSON strictly, and whose log holds nothing that was sent."""

    request_class = StrictRequest

    def log_exception(
        self,
        exception_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None],
    ) -> None:
        """Log an unexpected exception without its path and message; see logs.ExceptionFilter for the latter."""
        self.logger.error("unexpected exception", exc_info=exception_info)


def create_app(settings: Settings | None = None, clock: Callable[[], datetime] = utc_now) -> Quart:
    """Build the service. Nothing is written, opened or connected to before it starts to serve.

    Args:
        settings: Read from the environment and the instance folder unless given.
        clock: Returns the time in UTC, to the millisecond.

    Raises:
        StartError: A setting is wrong. It says which, in one line.

    """
    settings = settings or settings_module.load().settings
    logs.install(settings)
    app = App("quart_ots", static_folder=None)
    # Redirects repeat the path that was sent, with its key.
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        BODY_TIMEOUT=30,  # seconds
        BACKGROUND_TASK_SHUTDOWN_TIMEOUT=request.LAST,  # seconds
        SEND_FILE_MAX_AGE_DEFAULT=None,
        PROPAGATE_EXCEPTIONS=False,  # debug mode would answer with a traceback
    )
    exposition.name_build(__version__)
    ring = load_ring(settings)
    pool = Pool(settings.kdf_threads, settings.kdf_queue)
    database = Database(settings)

    requests = request.init_app(app, settings, problems.LAST_WORDS)
    problems.init_app(app)
    openapi.init_app(app, __version__)
    limits.init_app(app, settings)
    app.register_blueprint(limits.limited(routes.blueprint, settings))
    app.register_blueprint(health.blueprint)
    if settings.metrics_bind is None:
        app.register_blueprint(exposition.blueprint)
    stop = app.extensions[serve.EXTENSION] = serve.Stop(settings.drain, pool, requests)

    async def check_ready() -> None:
        stop.check()
        pool.check()
        await database.check()

    app.extensions[health.EXTENSION] = check_ready
    stop_metrics: list[Callable[[], None]] = []

    async def start() -> None:
        nonlocal ring
        if ring is None or settings.mongodb_url is None:
            make_folder(settings)
        ring = ring or keyring.read_or_make_file(settings.instance_path)
        app.extensions[routes.EXTENSION] = Services(ring, pool, settings.bcrypt_cost, clock)
        if settings.metrics_bind is not None:
            stop_metrics.append(exposition.serve(settings.metrics_bind))
        pool.start()
        await database.open(ring)
        stop.take_signals()

    @app.before_serving
    async def start_or_say_why() -> None:
        try:
            await start()
        except (StartError, ThreadsError, keyring.KeyRingError) as error:
            # asyncio would log a traceback of each task that it then cancels.
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            raise _start_error(error) from None

    # Quart has waited by then for what run_to_completion began.
    @app.after_serving
    async def end() -> None:
        for stop_one in stop_metrics:
            await asyncio.to_thread(stop_one)
        await database.close()
        pool.close()

    return app


def load_ring(settings: Settings) -> KeyRing | None:
    """Return the key ring, None where the first start is still to make it; StartError if it cannot be read."""
    keys = settings.master_keys.get_secret_value() if settings.master_keys else None
    try:
        return keyring.load(keys, settings.master_keys_file, settings.instance_path)
    except keyring.KeyRingError as error:
        raise _start_error(error) from None


def make_folder(settings: Settings) -> None:
    """Make the instance folder (mode 0700) where there is none; StartError if that fails."""
    try:
        settings.instance_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"QUART_OTS_INSTANCE_PATH: {error.strerror}: {settings.instance_path}") from None


def _start_error(error: BaseException) -> StartError:
    if isinstance(error, StartError):
        return error
    if isinstance(error, ThreadsError):
        return StartError("the system refuses threads: raise the limit of processes (ulimit -u, or pids of the cgroup)")
    return StartError(str(error))
