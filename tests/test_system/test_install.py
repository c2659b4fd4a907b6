"""The package, installed into a venv of its own, runs from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.service import ROOT, environment_of, running
from tests.test_system.conftest import Database


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a venv in which the package is installed, and which finds the rest in ours."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    shutil.copytree(ROOT / "quart_ots", source / "quart_ots", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", symlinks=True)
    programs = folder / "venv" / "bin"
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    ours = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "ours.pth").write_text("".join(f"{path}\n" for path in ours))
    pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--ignore-installed", "."], cwd=source, check=True)
    return programs


def test_package_is_complete(installed: Path, mongod: Database, tmp_path: Path) -> None:
    """The console script serves from an empty folder: all that the service needs came with the package."""
    command = (str(installed / "quart-ots"), "serve", "--bind", "127.0.0.1:{port}")
    settings = {"MONGODB_URL": mongod.url, "INSTANCE_PATH": "instance"}
    with running(tmp_path, settings, command, source=tmp_path / "nothing") as service:
        assert service.client.get("/docs").status == 200
        assert service.client.get("/docs/docs.js").status == 200
        assert service.client.get("/openapi.json").status == 200
        assert service.read(service.generate()["secret_key"]).status == 200
        assert service.stop() == 0

    assert (tmp_path / "instance" / "master.key").exists()


def test_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    """The script runs the installed package, which is typed and has all its rooms, and not the checkout."""
    code = "from importlib.util import find_spec; print(*find_spec('quart_ots').submodule_search_locations)"
    done = subprocess.run(
        [str(installed / "python"), "-c", code],
        cwd=tmp_path,
        env=environment_of({}, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )

    package = Path(done.stdout.strip())
    assert package.is_relative_to(installed.parent)
    assert (package / "py.typed").exists()
    of_checkout = {path.relative_to(ROOT / "quart_ots") for path in (ROOT / "quart_ots").rglob("*.py")}
    assert {path.relative_to(package) for path in package.rglob("*.py")} == of_checkout


@pytest.mark.parametrize("words", [("--help",), ("keys", "new"), ("config",)], ids=" ".join)
def test_script_touches_nothing(installed: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """The console script's commands that need nothing leave an empty folder empty."""
    done = subprocess.run(
        [str(installed / "quart-ots"), *words],
        cwd=tmp_path,
        env=environment_of({}, tmp_path / "nothing"),
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr == "" or words == ("keys", "new")) == (0, True), done.stderr
    assert list(tmp_path.iterdir()) == []
