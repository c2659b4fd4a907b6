"""Another API beside this one, in the same app, is read, limited and refused by its own rules."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel
from quart import Blueprint, Quart, Response, abort, request
from quart.typing import TestClientProtocol as Client
from quart_schema import RequestSchemaValidationError, validate_request
from werkzeug.exceptions import BadRequest

from quart_ots import create_app
from quart_ots.settings import Settings
from quart_ots.vault.errors import SecretNotFoundError
from tests.conftest import Clock, Created, post
from tests.test_api.conftest import check_problem


class Order(BaseModel):
    """A body of the other API: pydantic's usual conversions, unknown fields ignored."""

    count: int


def other_api(name: str) -> Blueprint:
    """Return an API without a rule of ours."""
    blueprint = Blueprint(name, __name__, url_prefix=f"/{name}")

    @blueprint.post("/echo")
    async def echo() -> dict[str, object]:
        return {"got": await request.get_json()}

    @blueprint.post("/order")
    @validate_request(Order)
    async def order(data: Order) -> dict[str, int]:
        return {"count": data.count}

    @blueprint.get("/abort/<int:status>")
    async def refuse(status: int) -> Response:
        abort(status)

    @blueprint.get("/miss")
    async def miss() -> Response:
        raise SecretNotFoundError

    return blueprint


@pytest.fixture
async def app(settings: Settings, clock: Clock, memory: None) -> AsyncIterator[Quart]:
    """Our app with two more APIs: one that handles its errors, and one that does not."""
    app = create_app(settings, clock)
    handled = other_api("handled")

    @handled.errorhandler(RequestSchemaValidationError)
    @handled.errorhandler(BadRequest)
    @handled.errorhandler(SecretNotFoundError)
    async def answer(error: Exception) -> Response:
        return Response(type(error).__name__, 422)

    app.register_blueprint(handled)
    app.register_blueprint(other_api("bare"))
    async with app.test_app():
        yield app


@pytest.mark.parametrize(
    ("sent", "content_type", "got"),
    [
        (b'{"a": 1, "a": 2}', "application/json", '{"got":{"a":2}}'),
        (b'{"a": NaN}', "application/json", '{"got":{"a":NaN}}'),
        (b'{"a": 1}', "application/vnd.other+json", '{"got":{"a":1}}'),
        (b'{"a": 1}', "text/plain", '{"got":null}'),
    ],
    ids=["name twice", "NaN", "another JSON", "no JSON"],
)
async def test_json_is_read_as_quart_does(client: Client, sent: bytes, content_type: str, got: str) -> None:
    """What our API refuses as ambiguous or of another type is the other's own affair."""
    answer = await post(client, "/bare/echo", sent, **{"Content-Type": content_type})

    assert (answer.status_code, (await answer.get_data(as_text=True)).strip()) == (200, got)


async def test_models_are_read_as_pydantic_does(client: Client) -> None:
    """Another API's models convert and ignore as they like."""
    answer = await post(client, "/bare/order", {"count": "3", "unknown": 1})

    assert await answer.get_json() == {"count": 3}


async def test_own_error_handlers(client: Client, created: Created) -> None:
    """Another API answers bad bodies and the vault's errors in its own words, and ours stay as they are."""
    malformed = await post(client, "/handled/echo", b"{")
    invalid = await post(client, "/handled/order", {})
    missed = await client.get("/handled/miss")
    ours = await post(client, "/generate", b"{")

    assert {answer.status_code for answer in (malformed, invalid, missed)} == {422}
    assert await malformed.get_data(as_text=True) == "BadRequest"
    assert await invalid.get_data(as_text=True) == "RequestSchemaValidationError"
    assert await missed.get_data(as_text=True) == "SecretNotFoundError"
    await check_problem(ours, 400, "malformed-body")


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "bad-request"), (403, "forbidden"), (404, "not-found"), (409, "conflict"), (415, "unsupported-media-type")],
)
async def test_errors_without_a_handler(client: Client, status: int, name: str) -> None:
    """What another API leaves to the app is a problem by its status, and none of the life of our secrets."""
    answer = await client.get(f"/bare/abort/{status}")

    problem = await check_problem(answer, status, name)
    assert set(problem) == {"type", "title", "status", "detail"}


async def test_503_of_another_api_is_not_ours(client: Client) -> None:
    """A 503 of another API is no full pool of ours."""
    answer = await client.get("/bare/abort/503")

    assert answer.status_code == 503
    assert (await answer.get_json(force=True))["type"] == "urn:quart-ots:problem:service-unavailable"


async def test_vault_error_without_a_handler(client: Client) -> None:
    """An API that forgets to answer an error of the vault's has a fault: it does not borrow our answers."""
    answer = await client.get("/bare/miss")

    await check_problem(answer, 500, "internal-error")


@pytest.mark.parametrize("settings", [{"rate_limit": 1}], indirect=True)
async def test_no_limit_of_ours(client: Client) -> None:
    """Another API's requests spend no budget of ours, and are not refused when it is spent."""
    for _ in range(5):
        assert (await post(client, "/bare/order", {"count": 1})).status_code == 200

    first = await client.get(f"/receipts/{'a' * 43}")
    second = await client.get(f"/receipts/{'a' * 43}")
    other = await post(client, "/bare/order", {"count": 1})

    assert [first.status_code, second.status_code, other.status_code] == [404, 429, 200]
    assert "RateLimit-Limit" in second.headers
    assert "RateLimit-Limit" not in other.headers
