"""Every error has a row in one table, and is answered and documented as that row says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from quart import Blueprint, Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import create_app
from quart_ots.api import problems
from quart_ots.settings import Settings
from quart_ots.vault import errors
from tests.conftest import PHRASE, ROOT, Clock, Created
from tests.test_api.conftest import Intercept, check_problem, finish, hang_up

# One of each error that the vault raises, and the problem it is told as.
ERRORS: dict[Exception, tuple[int, str, dict[str, Any]]] = {
    errors.SecretNotFoundError(): (404, "secret-not-found", {}),
    errors.ReceiptNotFoundError(): (404, "receipt-not-found", {}),
    errors.WrongPassphraseError(3): (403, "wrong-passphrase", {"attempts_left": 3}),
    errors.AlreadyEndedError("locked"): (409, "already-ended", {"state": "locked"}),
    errors.BusyError(7): (503, "busy", {}),
    errors.DrainingError(): (503, "draining", {}),
    errors.ClientGoneError(): (503, "draining", {}),
    errors.DatabaseUnavailableError(): (503, "database-unavailable", {}),
    errors.DamagedEnvelopeError("?"): (503, "unreadable-secret", {}),
    errors.UnknownKeyError("0123456789abcdef"): (503, "unreadable-secret", {}),
}
# Bases, raised as one of their children alone; and one that never leaves the vault.
NEVER_ANSWERED = {errors.RefusedError, errors.UnavailableError, errors.EnvelopeError, errors.NotOpenedError}
MEMBERS = {"type", "title", "status", "detail"}


def descendants(kind: type[Exception]) -> Iterator[type[Exception]]:
    """Yield all classes under a class."""
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def test_every_error_of_the_vault_is_a_problem() -> None:
    """The class tree of the vault's errors has none that is not tried below."""
    defined = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    tree = {*descendants(errors.RefusedError), *descendants(errors.UnavailableError)}

    assert defined | tree == NEVER_ANSWERED | {type(error) for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_error_is_answered_as_its_row_says(
    settings: Settings, clock: Clock, memory: None, error: Exception
) -> None:
    """An error that leaves a handler is told with the members of its kind, and no other fact of it."""

    async def fail() -> str:
        raise error

    blueprint = Blueprint("failing", __name__)
    problems.register(blueprint)
    blueprint.add_url_rule("/fail", "fail", fail)
    app = create_app(settings, clock)
    app.register_blueprint(blueprint)
    status, name, members = ERRORS[error]

    async with app.test_app():
        answer = await app.test_client().get("/fail")

    problem = await check_problem(answer, status, name)
    assert set(problem) == MEMBERS | set(members)
    assert problem | members == problem
    if isinstance(error, errors.UnavailableError):
        assert answer.headers["Retry-After"] == str(error.retry_after)


def test_rows_differ() -> None:
    """No two kinds of problem have a name or a title in common, so that clients can tell them apart."""
    assert len({row.name for row in problems.TABLE}) == len({row.title for row in problems.TABLE})
    assert len({row.name for row in problems.TABLE}) == len(problems.TABLE)


def test_page_has_the_table() -> None:
    """docs/errors.md has the table as it is in the code."""
    page = (ROOT / "docs" / "errors.md").read_text()

    assert f"\n\n{problems.table()}\n\n" in page


async def test_unexpected_error_is_a_plain_500(
    client: Client, created: Created, intercept: Intercept, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours answers 500 with the request's id alone, and is logged by class and place, not by value."""

    async def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError(f"about {created.secret_key}")

    intercept("envelopes", "find_one", fail)

    answer = await client.get(f"/secrets/{created.secret_key}", headers={"X-Request-ID": "try-1"})

    problem = await check_problem(answer, 500, "internal-error")
    assert problem["request_id"] == answer.headers["X-Request-ID"] == "try-1"
    assert "unexpected ArithmeticError on GET /secrets/<secret_key>" in caplog.text
    assert "routes.py:" in caplog.text
    assert created.secret_key not in caplog.text
    assert created.secret_key not in json.dumps(problem)


async def test_error_after_a_hang_up_is_logged(
    app: Quart, client: Client, created: Created, intercept: Intercept, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours that comes when nobody waits for the answer any more is still in the log."""
    caplog.set_level(logging.ERROR)
    begun, gone = asyncio.Event(), asyncio.Event()

    async def fail(*_: Any, **__: Any) -> None:
        begun.set()
        await gone.wait()
        raise ArithmeticError(f"about {created.secret_key}")

    intercept("envelopes", "find_one", fail)
    sent = await hang_up(app, f"/secrets/{created.secret_key}", {"passphrase": PHRASE}, begun.wait())
    gone.set()

    await finish(app)

    assert sent == []
    assert "ArithmeticError" in caplog.text
    assert created.secret_key not in caplog.text
