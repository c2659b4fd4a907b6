"""Stopping in two steps, for whoever balances load: first not ready while still serving, then no more."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal

from quart import Quart

from .errors import DrainingError


class Drain:
    """Whether the service is being stopped.

    Hypercorn stops listening at once on SIGTERM, so that a balancer may still send to where nobody listens. With
    seconds to drain, SIGTERM makes the service not ready for that long; then it sends itself a SIGINT, which is the
    same to Hypercorn. A second SIGTERM does that at once.

    Args:
        seconds: How long; 0 leaves SIGTERM to the server.

    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._begun = False

    def check(self) -> None:
        """Raise DrainingError once the service is being stopped."""
        if self._begun:
            raise DrainingError

    def init_app(self, app: Quart) -> None:
        """Take SIGTERM over from the server, unless this is one of several workers, which another process stops."""

        def begin() -> None:
            if self._begun:
                _stop()
                return
            self._begun = True
            app.logger.warning("draining: not ready, but serving, for %d s", self._seconds)
            asyncio.get_running_loop().call_later(self._seconds, _stop)

        async def take_over() -> None:
            if self._seconds and multiprocessing.parent_process() is None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, begin)

        app.before_serving(take_over)
        app.after_serving(self.end)

    async def end(self) -> None:
        """Be no longer ready: nothing listens any more."""
        self._begun = True


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)
