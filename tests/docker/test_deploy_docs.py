"""docs/deploy.md: its commands are run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.stack import COMPOSE, PATIENCE, Stack, inspect, run, serves
from tests.mongod import wait_for
from tests.service import ROOT

FILES = ("docker-compose.yml", "docker-compose.secrets.yml", "docker-compose.proxy.yml", "docker-compose.cluster.yml")
CLUSTER = "docker-compose.cluster.yml"


def blocks(heading: str) -> list[str]:
    """Return the blocks of commands under a heading."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    _, _, after = page.partition(f"\n## {heading}\n")
    part = after.partition("\n## ")[0]
    found = re.findall(r"(?:^    .*\n)+", part, re.MULTILINE)
    assert found, f"no commands under {heading}"
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in found]


def ask(stack: Stack, service: str, call: str) -> str:
    """Let a MongoDB of a stack's evaluate a call, as its root."""
    words = ("exec", "-T", service, "mongosh", "-u", "root", "-p", "not-secret", "--quiet", "--eval", call)
    return stack.compose(*words)


class Reader:
    """Somebody who follows the page, in a folder that has the compose files and no other project's containers."""

    def __init__(self, folder: Path, image: str) -> None:
        self._folder = folder
        for file in FILES:
            # The image is there, and its sources are not.
            text = (ROOT / file).read_text().replace("    build: .\n", "")
            (folder / file).write_text(text)
        (folder / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "nginx.conf", folder / "docs")
        (folder / "bin").mkdir()
        command = folder / "bin" / "docker-compose"
        command.write_text(f'#!/bin/sh\nexec {shutil.which(COMPOSE[0])} {" ".join(COMPOSE[1:])} "$@"\n')
        command.chmod(0o755)
        self._image = image

    def follow(self, stack: Stack, commands: str) -> str:
        """Run commands as they stand on the page, on a stack's project."""
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        environment = {**stack.environment, "PATH": path, "QUART_OTS_IMAGE": self._image}
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=self._folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stack(self, name: str, *files: str, port: str = "PUBLISH_PORT") -> Stack:
        """Return a project of the compose files in the reader's folder."""
        return Stack(name, *files, port=port, folder=self._folder)


@pytest.fixture
def reader(image: str, tmp_path: Path) -> Reader:
    """A reader of the page."""
    return Reader(tmp_path, image)


def test_commands_in_the_image(reader: Reader) -> None:
    """The operator's commands run in the container."""
    (stats,) = blocks("The image")
    with reader.stack("docs-stats").running() as stack:
        stack.generate()

        counts = reader.follow(stack, stats)

        assert re.search(r"^pending +1$", counts, re.MULTILINE)


@pytest.mark.skipif(os.geteuid() != 0, reason="the page says: as root")
def test_passwords_and_keys_from_files(reader: Reader, tmp_path: Path) -> None:
    """With the files that the page makes, the service runs, and only the user who needs a file can read it."""
    (make,) = blocks("Passwords and keys from files")
    stack = reader.stack("docs-files", "docker-compose.yml", "docker-compose.secrets.yml")
    try:
        reader.follow(stack, make)

        stack.wait_until_ready()
        assert stack.read(stack.generate()).status == 200
        modes = {
            file.name: (file.stat().st_uid, file.stat().st_mode & 0o777) for file in (tmp_path / "secrets").iterdir()
        }
        assert modes == {"master_keys": (10001, 0o400), "mongodb_url": (10001, 0o400), "mongo_password": (999, 0o400)}
    finally:
        stack.compose("down", "-v")


def test_user_with_fewer_rights(reader: Reader) -> None:
    """With the rights of the page's user the service makes its indexes and serves, and can drop nothing."""
    (make,) = blocks("A user with fewer rights")
    with reader.stack("docs-user").running() as stack:
        stack.compose("stop", "app")
        ask(stack, "mongo", 'db.getSiblingDB("quart_ots").runCommand({dropDatabase: 1})')

        reader.follow(stack, make)

        stack.wait_until_ready()
        assert stack.read(stack.generate()).status == 200
        created = stack.generate()
        assert "root" not in str(inspect(stack.container("app"))["Config"]["Env"])
        for command in ("stats", "keys check", "purge --yes"):
            stack.compose("exec", "-T", "app", "quart-ots", *command.split())
        assert stack.receipt(created)["state"] == "burned"
        attempt = (
            "import os, pymongo\nclient = pymongo.MongoClient(os.environ['QUART_OTS_MONGODB_URL'])\n"
            "for drop in (lambda: client.quart_ots.secrets.drop(), lambda: client.other.secrets.find_one()):\n"
            "    try:\n        drop()\n    except pymongo.errors.OperationFailure as error:\n        print(error.code)"
        )
        refusals = run("docker", "exec", stack.container("app"), "python", "-c", attempt).split()
        assert refusals == ["13", "13"]  # Unauthorized


def test_behind_a_reverse_proxy(reader: Reader) -> None:
    """Two apps run behind nginx."""
    (up,) = blocks("Behind a reverse proxy")
    stack = reader.stack("docs-proxy", "docker-compose.yml", "docker-compose.proxy.yml", port="PROXY_PORT")
    try:
        reader.follow(stack, up)

        wait_for(lambda: all(serves(app, "/health/ready") for app in stack.containers("app")), PATIENCE)
        assert len(stack.containers("app")) == 2
        assert stack.read(stack.generate()).status == 200
    finally:
        stack.compose("down", "-v")


def test_backup_and_restore(reader: Reader, tmp_path: Path) -> None:
    """A secret that waited when the backup was made is read from its restoration, and no file is for all to see."""
    save, restore, *_ = blocks("Backup and restore")
    with reader.stack("docs-backup").running() as stack:
        created = stack.generate("backed up")

        reader.follow(stack, save)

        stack.wait_until_ready()
        assert stack.read(created).status == 200
        assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("mongo.tar.gz", "master.key")} == {0o600}
        stack.compose("down", "-v")
        reader.follow(stack, restore)
        stack.wait_until_ready()
        assert stack.read(created).json() == {"secret": "backed up"}


def test_cluster_backup_and_restore(reader: Reader) -> None:
    """A replica set is started, copied while it serves, and restored from the copy of one member."""
    (up,) = blocks("A replica set")
    *_, save, restore = blocks("Backup and restore")
    stack = reader.stack("docs-cluster", CLUSTER, port="PROXY_PORT")
    try:
        reader.follow(stack, up)
        stack.wait_until_steady()
        created = stack.generate("backed up")

        reader.follow(stack, save)

        stack.wait_until_steady()
        assert stack.read(created).status == 200
        stack.compose("down", "-v")
        reader.follow(stack, restore)
        stack.wait_until_steady()
        assert stack.read(created).json() == {"secret": "backed up"}
        wait_for(lambda: ask(stack, "mongo1", "rs.status()").count("SECONDARY") == 2, PATIENCE)
    finally:
        stack.compose("down", "-v")
