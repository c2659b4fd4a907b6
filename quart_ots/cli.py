"""The operator's commands: ``quart --app quart_ots ots …``.

Exit statuses: 0 done; 1 not done, and a line on stderr says why; 2 wrong usage; 3 done, and something needs you.
What was asked for is on stdout, as text or, with --json, as one JSON value; all else is on stderr.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from quart import Quart

from . import census, crypto
from .config import SETTINGS
from .db import Database
from .schemas import rfc3339

T = TypeVar("T")
NEEDS_YOU = 3


def utc_time(text: str) -> datetime:
    """Read a time as ISO 8601 writes it; UTC unless it says otherwise."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON value.")


def init_app(app: Quart, database: Database, ring: crypto.KeyRing, sources: Mapping[str, str]) -> None:
    """Give the app its commands.

    Args:
        app: Read for its settings.
        database: Opened by each command that needs it.
        ring: The master keys.
        sources: Where each setting's value came from, see config.load.

    """

    def with_database(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            async with database.opened():
                return await work()

        # What the service would tell at its start is not what was asked for.
        logging.disable(logging.WARNING)
        return asyncio.run(run())

    def count_by_key() -> dict[str, census.KeyUse]:
        async def count() -> dict[str, census.KeyUse]:
            with _progress("counting", await census.estimate_envelopes()) as progress:
                return await census.count_by_key(datetime.now(UTC), progress)

        return with_database(count)

    @click.group()
    def ots() -> None:
        """Look after the service and its secrets."""

    @ots.group()
    def keys() -> None:
        """Look after the master keys, by their ids."""

    @keys.command("list")
    @as_json_option
    def list_keys(as_json: bool) -> None:
        """List the keys, and how many secrets wait under each."""
        uses = count_by_key()
        rows = [
            {
                "id": id_,
                "first": id_ == ring.ids[0],
                "in_ring": id_ in ring.ids,
                "waiting": uses[id_].live if id_ in uses else 0,
            }
            for id_ in _all_ids(ring, uses)
        ]
        _show(rows, as_json)

    @keys.command("new")
    @as_json_option
    def new_key(as_json: bool) -> None:
        """Draw a key to put first in the key ring. Changes nothing by itself."""
        key = crypto.new_master_key()
        text, id_ = base64.b64encode(key).decode(), crypto.key_id(key).hex()
        if as_json:
            click.echo(json.dumps({"id": id_, "key": text}))
            return
        click.echo(text)
        click.echo(f"Its id is {id_}. Put it first in the key ring, keep the others, restart the service.", err=True)

    @keys.command("check")
    @as_json_option
    @click.pass_context
    def check_keys(ctx: click.Context, as_json: bool) -> None:
        """Say which keys may be dropped, now or when. Exits with 3 if secrets wait under a key that is missing."""
        uses = count_by_key()
        _show([_verdict(id_, uses.get(id_), ring) for id_ in _all_ids(ring, uses)], as_json)
        if set(uses) - set(ring.ids):
            click.echo("A key is missing: put it back into the key ring, or its secrets can't be read.", err=True)
            ctx.exit(NEEDS_YOU)

    @ots.command("config")
    @as_json_option
    def show_config(as_json: bool) -> None:
        """Show every setting, its value and where it came from. Keys are shown as ids, passwords not at all."""
        rows = [
            {"setting": name, "value": _public(name, app.config[name], ring), "source": sources[name]}
            for name in (setting.name for setting in SETTINGS)
        ]
        _show(rows, as_json)
        if not as_json:
            click.echo(f"\nkey ring: {', '.join(ring.ids)}, the first seals")

    @ots.command()
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

        burned = with_database(burn)
        click.echo(json.dumps({"burned": burned}) if as_json else f"Burned {burned} secrets.")

    @ots.command()
    @as_json_option
    def stats(as_json: bool) -> None:
        """Count the secrets by how they stand. Those past twice their ttl are gone, and not counted."""

        async def count() -> dict[str, int]:
            with _progress("counting", await census.estimate_secrets()) as progress:
                return await census.count_by_state(datetime.now(UTC), progress)

        counts = with_database(count)
        if as_json:
            click.echo(json.dumps(counts))
        else:
            _show([{"state": state, "secrets": number} for state, number in counts.items()], False)

    app.cli.add_command(ots)


def _all_ids(ring: crypto.KeyRing, uses: Mapping[str, census.KeyUse]) -> list[str]:
    """Give the ring's ids in its order, then those that secrets wait under besides."""
    return [*ring.ids, *sorted(set(uses) - set(ring.ids))]


def _verdict(id_: str, use: census.KeyUse | None, ring: crypto.KeyRing) -> dict[str, Any]:
    """Say what can be done with a key. Its secrets may all be gone before the time given, but not after."""
    verdict, until = "drop", None
    if id_ not in ring.ids:
        verdict = "missing"
    elif id_ == ring.ids[0]:
        verdict = "seals"
    elif use is not None:
        verdict, until = "keep", rfc3339(use.until)
    return {"id": id_, "waiting": use.live if use else 0, "verdict": verdict, "keep_until": until}


def _public(name: str, value: Any, ring: crypto.KeyRing) -> Any:
    """Give a setting's value less what nobody may see."""
    if value is None or isinstance(value, int):
        return value
    if name == "MASTER_KEYS":
        return ", ".join(ring.ids)
    if name == "MONGODB_URL":
        # An option may hold a password too.
        return re.sub(r"//[^/]*@", "//***@", str(value).partition("?")[0])
    return str(value)


def _show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Write rows of the same columns as JSON or as a table."""
    if as_json:
        click.echo(json.dumps(rows))
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
