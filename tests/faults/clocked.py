"""The service with a clock that tests move: the time stands in a file, in milliseconds since 1970.

python -m tests.faults.clocked HOST:PORT
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quart_ots import create_app
from quart_ots.ops.serve import serve

VARIABLE = "CLOCK_FILE"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SERVE_CLOCKED = (sys.executable, "-m", "tests.faults.clocked", "127.0.0.1:{port}")


class FileClock:
    """A clock that stands still until it is moved, for all processes that read its file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> datetime:
        return EPOCH + timedelta(milliseconds=int(self._path.read_text()))

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Tell services that are started in the block where the time stands."""
        os.environ[VARIABLE] = str(self._path)
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    def set(self, now: datetime) -> None:
        """Move it, in one piece: nobody reads half a number."""
        draft = self._path.with_suffix(".draft")
        draft.write_text(str((now - EPOCH) // timedelta(milliseconds=1)))
        draft.replace(self._path)


if __name__ == "__main__":
    serve(create_app(clock=FileClock(Path(os.environ[VARIABLE]))), sys.argv[1:])
