"""Around every request: an id to find it by, the headers of every answer, a log line, and whether its client is there.

Keys stand in paths, and servers log paths: the scope that the server logs from loses its path, query and headers as
soon as the app sees it, whatever server that is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, current_app, request
from structlog.contextvars import bind_contextvars, get_contextvars

from .. import metrics
from ..settings import Settings
from .clients import client_address, peer_of

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]  # of an answer, names in lower case

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
UNKNOWN = "-"
NOWHERE = "/-"  # a path where nothing is
INFO = "quart_ots.request"
# As ASGI has them. The docs page has a policy of its own.
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_NAMES = frozenset(name for name, _ in HEADERS)
# Seconds that a request which the server drops has to finish what it has begun: a hash of the highest cost takes 4.
LAST = 6
# Seconds that its answer has then to be taken by the client.
LAST_ANSWER = 1
# Too short for a key, which a confused client might send here too; a UUID has 36 characters, nginx's id 32.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,36}")

logger = logging.getLogger("quart_ots")


@dataclass
class RequestInfo:
    """What is known of one request.

    Args:
        shown: The server's scope, which it may log from.
        gone: Done once nobody waits for the answer any more.

    """

    shown: dict[str, Any]
    gone: asyncio.Future[None]
    route: str = UNKNOWN
    status: int | None = None  # none yet, or none ever: the client hung up
    sent: int = 0  # bytes of the body
    steps: list[asyncio.Future[None]] = field(default_factory=list)  # of run_to_completion, each done at its end
    over: bool = False  # the handler may send nothing more

    def leave(self) -> None:
        """Note that nobody waits for the answer any more."""
        if not self.gone.done():
            self.gone.set_result(None)


class Requests:
    """The requests in flight, as the tasks of the server's that they run in."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def end(self) -> None:
        """Drop them all, as the server does when its patience at a stop is over: each is still answered."""
        for task in self.tasks:
            task.cancel()


def request_id() -> str:
    """Return the id of the request that is being served."""
    return str(get_contextvars()["request_id"])


def info() -> RequestInfo:
    """Return what is known of the request that is being served."""
    return cast(RequestInfo, cast(dict[str, Any], request.scope)[INFO])


async def run_to_completion(step: Coroutine[Any, Any, T], expected: tuple[type[Exception], ...] = ()) -> T:
    """Run a step in a task that the end of the request does not cancel, and return its result.

    Quart cancels a handler whose client hangs up; half a step could leave an attempt taken and not judged. The task is
    one of Quart's background tasks, which its shutdown waits for.

    Args:
        step: What to run.
        expected: Errors that are not logged when they come after the end of the request.

    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    info().steps.append(ended)

    async def run() -> None:
        try:
            result = await step
        except Exception as error:
            if not outcome.done():
                outcome.set_exception(error)
            elif not isinstance(error, expected):
                raise  # Quart logs it
        else:
            if not outcome.done():
                outcome.set_result(result)
        finally:
            outcome.cancel()  # where this task was cancelled
            ended.set_result(None)

    current_app.add_background_task(run)
    return await outcome


def read_target(target: str) -> str:
    """Return the path of a request's target, such as /a or http://h/a; NOWHERE if it has none.

    Quart's own reading fails on an empty target and on a broken host, a 500, and takes //metrics for /metrics, which a
    proxy may know to refuse.
    """
    try:
        path = target if target.startswith("/") else urlsplit(target).path
    except ValueError:
        path = ""
    return path if path.startswith("/") and not path.startswith("//") else NOWHERE


def choose_id(sent: Iterable[str]) -> str:
    """Return the id in an X-Request-ID header if it is one, else draw one: 32 hex digits."""
    # It has to differ each time; nobody gains by guessing it.
    return next(filter(_REQUEST_ID.fullmatch, sent), None) or f"{random.getrandbits(128):032x}"  # nosec B311


def harden(headers: Headers) -> Headers:
    """Return an answer's headers with those that every answer carries."""
    kept = [header for header in headers if header[0] not in _NAMES]
    policy = () if any(name == POLICY[0] for name, _ in kept) else (POLICY,)
    return [*kept, *HEADERS, *policy]


def init_app(app: Quart, settings: Settings, last_words: Mapping[str, tuple[int, bytes]]) -> Requests:
    """Guard all requests, and return those in flight.

    Args:
        app: Call this before anything that may refuse requests.
        settings: Which address to log, if any.
        last_words: Status and body for what no handler answers: `dropped` where the server drops a request, `unknown`
            where that had begun what is not finished in time, `failed` where the framework itself fails.

    """
    inner = app.asgi_app
    requests = Requests()

    async def asgi_app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            return await inner(scope, receive, send)
        started = time.perf_counter()
        known = RequestInfo(cast(dict[str, Any], scope), asyncio.get_running_loop().create_future())
        sent = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        # No route takes a query.
        private: Any = {**scope, INFO: known, "path": read_target(scope["path"]), "query_string": b""}
        known.shown.update(path=UNKNOWN, raw_path=UNKNOWN.encode(), query_string=b"", headers=[])
        id_ = choose_id(value for name, value in sent if name == b"x-request-id")
        bind_contextvars(request_id=id_)

        async def watched_receive() -> Any:
            message = await receive()
            if message["type"].endswith(".disconnect"):
                known.leave()
            return message

        async def hardened_send(message: Any) -> None:
            if message["type"].endswith("http.response.start"):  # a refused websocket has it too
                known.status = message["status"]
                headers = [*harden(message["headers"]), (b"x-request-id", id_.encode())]
                message = {**message, "headers": headers}
            await send(message)
            known.sent += len(message.get("body", b""))

        async def handlers_send(message: Any) -> None:
            if not known.over:  # Quart goes on with a handler whose request was dropped
                await hardened_send(message)

        task = cast(asyncio.Task[Any], asyncio.current_task())
        requests.tasks.add(task)
        try:
            await _serve(inner(private, watched_receive, handlers_send), known, hardened_send, last_words)
        finally:
            requests.tasks.discard(task)
            known.over = True
            known.leave()
            told: dict[str, Any] = {}
            if settings.log_addresses:
                forwarded_for = [value for name, value in sent if name == b"x-forwarded-for"]
                told["address"] = str(client_address(peer_of(scope), forwarded_for, settings.trusted_proxies))
            _log(known, private.get("method", "GET"), time.perf_counter() - started, told)

    app.asgi_app = asgi_app  # type: ignore[method-assign]  # Quart's own way to be wrapped
    app.before_request(_note_route)
    return requests


async def _serve(
    serving: Coroutine[Any, Any, None], known: RequestInfo, send: Any, last_words: Mapping[str, tuple[int, bytes]]
) -> None:
    """Serve a request. If the server drops it meanwhile, nothing more is claimed for it, but it is still answered."""
    handler = asyncio.ensure_future(serving)
    try:
        # Quart would leave a handler running whose request is cancelled, and the server would answer a bare 500.
        await asyncio.shield(handler)
        if not known.gone.done():
            await _say("unknown", known, send, last_words)  # where Quart, at its own end, has cut a step off
    except asyncio.CancelledError:
        known.leave()
        ending = asyncio.ensure_future(_end(handler, known, send, last_words))
        while not ending.done():  # the server may cancel more than once
            with suppress(asyncio.CancelledError):
                await asyncio.shield(ending)
        raise
    except Exception:
        logger.exception("unexpected exception")
        await _say("failed", known, send, last_words)


async def _end(
    handler: asyncio.Future[None], known: RequestInfo, send: Any, last_words: Mapping[str, tuple[int, bytes]]
) -> None:
    """Bring a dropped request to its end: what it has begun is finished and answered, else the answer is 503."""
    if known.steps:
        await asyncio.wait(known.steps, timeout=LAST)
    # A secret may have been claimed for an answer that is on its way.
    if known.steps or known.status is not None:
        await asyncio.wait([handler], timeout=LAST_ANSWER)
    known.over = True
    handler.cancel()
    await asyncio.gather(handler, return_exceptions=True)
    finished = all(step.done() for step in known.steps)
    await _say("dropped" if finished else "unknown", known, send, last_words)


async def _say(end: str, known: RequestInfo, send: Any, last_words: Mapping[str, tuple[int, bytes]]) -> None:
    """Answer what has no answer yet."""
    status, body = last_words[end]
    if known.status is None and known.shown["type"] == "http":
        headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
        headers += [(b"retry-after", b"2")] if status == 503 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


async def _note_route() -> None:
    if request.url_rule is not None:
        known = info()
        known.route = known.shown["path"] = request.url_rule.rule


def _log(known: RequestInfo, method: str, seconds: float, told: dict[str, Any]) -> None:
    method = method if method in METHODS else UNKNOWN
    status = UNKNOWN if known.status is None else known.status
    metrics.REQUESTS.labels(method, known.route, status).observe(seconds)
    sent = 0 if method == "HEAD" else known.sent
    milliseconds = round(1000 * seconds, 3)
    facts = {"method": method, "route": known.route, "status": status, "milliseconds": milliseconds, "bytes": sent}
    logger.info("request", extra={**facts, **told})
