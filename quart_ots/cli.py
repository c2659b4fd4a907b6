"""The operator's commands: ``quart-ots serve | keys | config | stats | purge``.

Exit statuses: 0 done; 1 not done, and a line on stderr says why; 2 wrong usage; 3 done, and something needs attention.
The result is on stdout, as text or, with --json, as one JSON value; all else is on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from pydantic import SecretStr

from . import __version__, create_app, load_ring, make_folder
from .api.bodies import rfc3339
from .ops import serve as serving
from .ops.database import PATIENT, Database
from .settings import Settings, load, variable
from .vault import census, crypto
from .vault.keyring import encode

T = TypeVar("T")
NEEDS_ATTENTION = 3


def utc_time(text: str) -> datetime:
    """Read a time as ISO 8601 writes it; UTC unless it says otherwise."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON value.")


@click.group(name="quart-ots")
@click.version_option(__version__)
def main() -> None:
    """Run the service of one-time secrets, and look after it."""


@main.command()
@click.option(
    "--bind",
    "binds",
    multiple=True,
    default=["127.0.0.1:8080"],
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; may be given several times. An empty host is every address of both IP families.",
)
def serve(binds: tuple[str, ...]) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    serving.serve(create_app(), binds)


@main.group()
def keys() -> None:
    """Look after the master keys, by their ids."""


@keys.command("list")
@as_json_option
def list_keys(as_json: bool) -> None:
    """List the keys, and how many secrets wait under each."""
    settings = load().settings
    ids, uses = _ring_ids(settings), _count_by_key(settings)
    rows = [
        {
            "id": id_,
            "first": id_ in ids[:1],
            "in_ring": id_ in ids,
            "waiting": uses[id_].live if id_ in uses else 0,
        }
        for id_ in _all_ids(ids, uses)
    ]
    _show(rows, as_json)


@keys.command("new")
@as_json_option
def new_key(as_json: bool) -> None:
    """Draw a key to put first in the key ring. Changes nothing."""
    key = crypto.new_master_key()
    text, id_ = encode(key), crypto.key_id(key).hex()
    if as_json:
        click.echo(json.dumps({"id": id_, "key": text}))
        return
    click.echo(text)
    click.echo(f"Its id is {id_}. Put it first in the key ring, keep the others, restart the service.", err=True)


@keys.command("check")
@as_json_option
@click.pass_context
def check_keys(ctx: click.Context, as_json: bool) -> None:
    """Report which keys may be dropped, now or when. Exits with 3 if secrets wait under a key that is missing."""
    settings = load().settings
    ids, uses = _ring_ids(settings), _count_by_key(settings)
    _show([_verdict(id_, uses.get(id_), ids) for id_ in _all_ids(ids, uses)], as_json)
    if set(uses) - set(ids):
        click.echo("A key is missing: put it back into the key ring, or its secrets can't be read.", err=True)
        ctx.exit(NEEDS_ATTENTION)


@main.command("config")
@as_json_option
def show_config(as_json: bool) -> None:
    """Show every setting, its value and where it came from. Keys are shown as ids, passwords not at all."""
    settings, sources = load()
    ids = _ring_ids(settings)
    rows = [
        {"setting": variable(name), "value": _public(name, getattr(settings, name), ids), "source": sources[name]}
        for name in Settings.model_fields
    ]
    _show(rows, as_json)
    if not as_json:
        ring = f"{', '.join(ids)}, the first seals" if ids else "none yet: the first start makes one"
        click.echo(f"\nkey ring: {ring}")


@main.command()
@as_json_option
@click.option("--created-before", type=utc_time, metavar="TIME", help="As in 2027-01-31T12:00Z.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(as_json: bool, created_before: datetime | None, yes: bool) -> None:
    """Burn every secret that waits, or those created before a time. They can't be read any more."""

    async def burn() -> int:
        now = datetime.now(UTC)
        before = min(created_before or now, now)
        count = await census.count_live(now, before)
        question = f"Burn {count} secrets that wait, created before {rfc3339(before)}?"
        if not yes and not click.confirm(question, err=True):
            raise click.ClickException("nothing was burned")
        with _progress("burning", count) as progress:
            return await census.burn_all(now, before, progress)

    burned = _with_database(load().settings, burn)
    click.echo(json.dumps({"burned": burned}) if as_json else f"Burned {burned} secrets.")


@main.command()
@as_json_option
def stats(as_json: bool) -> None:
    """Count the secrets by state. Those whose receipts have been deleted are not counted."""

    async def count() -> dict[str, int]:
        with _progress("counting", await census.estimate_secrets()) as progress:
            return await census.count_by_state(datetime.now(UTC), progress)

    counts = _with_database(load().settings, count)
    if as_json:
        click.echo(json.dumps(counts))
    else:
        _show([{"state": state, "secrets": number} for state, number in counts.items()], False)


def _with_database(settings: Settings, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    database = Database(settings, **PATIENT)
    if settings.mongodb_url is None:
        make_folder(settings)

    async def run() -> T:
        async with database.opened():
            return await work()

    # What the service logs at its start is not what was asked for.
    logging.disable(logging.WARNING)
    return asyncio.run(run())


def _count_by_key(settings: Settings) -> dict[str, census.KeyUse]:
    async def count() -> dict[str, census.KeyUse]:
        with _progress("counting", await census.estimate_envelopes()) as progress:
            return await census.count_by_key(datetime.now(UTC), progress)

    return _with_database(settings, count)


def _ring_ids(settings: Settings) -> list[str]:
    """Return the ids of the ring's keys; none where the service has not made its first yet."""
    ring = load_ring(settings)
    return ring.ids if ring else []


def _all_ids(ids: list[str], uses: Mapping[str, census.KeyUse]) -> list[str]:
    """Return the ring's ids in its order, then the other ids under which secrets wait."""
    return [*ids, *sorted(set(uses) - set(ids))]


def _verdict(id_: str, use: census.KeyUse | None, ids: list[str]) -> dict[str, Any]:
    """Return what can be done with a key. Its secrets may all be gone before the time given, but not after."""
    verdict, until = "drop", None
    if id_ not in ids:
        verdict = "missing"
    elif id_ == ids[0]:
        verdict = "seals"
    elif use is not None:
        verdict, until = "keep", rfc3339(use.until)
    return {"id": id_, "waiting": use.live if use else 0, "verdict": verdict, "keep_until": until}


def _public(name: str, value: Any, ids: list[str]) -> Any:
    """Return a setting's value without what nobody may see."""
    if value is None or isinstance(value, int):
        return value
    if name == "mongodb_url":
        # An option may hold a password too, and a mistaken URL a password with any character.
        hidden = re.sub(r"\A(mongodb(?:\+srv)?://)?.*@", r"\1***@", value.get_secret_value(), flags=re.DOTALL)
        return hidden.partition("?")[0]
    if isinstance(value, SecretStr):
        return ", ".join(ids)
    return str(value)


def _show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Write rows of the same columns as JSON or as a table."""
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        return
    lines = [list(rows[0]), *([_word(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


@contextlib.contextmanager
def _progress(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr, where that is a terminal, how far a walk has come."""
    with click.progressbar(length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield bar.update
