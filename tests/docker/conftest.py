"""Fixtures of the tests on a running Docker engine."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.docker.stack import IMAGE, UNLIMITED, Stack
from tests.service import ROOT


@functools.cache
def engine() -> bool:
    """Return whether a Docker engine answers."""
    return shutil.which("docker") is not None and not subprocess.run(["docker", "info"], capture_output=True).returncode


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if item.path.parent == ROOT / "tests" / "docker":
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def docker() -> None:
    """The engine, without which no test of this folder can run."""
    if not engine():
        pytest.skip("no Docker engine answers")


@pytest.fixture(scope="session")
def image(docker: None) -> str:
    """The image, built as docker-compose.yml says."""
    Stack("build").compose("build", "app")
    return IMAGE


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    """The project as `docker-compose up` starts it."""
    with Stack("main", environment=UNLIMITED).running() as stack:
        yield stack
