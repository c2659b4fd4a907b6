"""openapi.json: that it is valid, complete, and true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import validate
from pymongo.errors import AutoReconnect
from quart import Quart, Response
from quart.typing import TestClientProtocol as Client

from quart_ots import __version__
from quart_ots.api import problems
from tests.conftest import Created, post, read
from tests.test_api.conftest import Intercept

OF_A_BODY = {"400", "408", "413", "415"}
STATUSES = {
    ("post", "/generate"): {"201", "429", "503"} | OF_A_BODY,
    ("post", "/secrets/{secret_key}"): {"200", "403", "404", "429", "503"} | OF_A_BODY,
    ("get", "/secrets/{secret_key}"): {"200", "404", "429", "503"},
    ("head", "/secrets/{secret_key}"): {"200", "404", "429", "503"},
    ("get", "/receipts/{receipt_key}"): {"200", "404", "429", "503"},
    ("head", "/receipts/{receipt_key}"): {"200", "404", "429", "503"},
    ("delete", "/receipts/{receipt_key}"): {"200", "404", "409", "429", "503"},
    ("get", "/health/live"): {"200"},
    ("head", "/health/live"): {"200"},
    ("get", "/health/ready"): {"200", "503"},
    ("head", "/health/ready"): {"200", "503"},
}

# Of paths and methods that are not there, and of faults.
OF_NO_OPERATION = {"bad-request", "not-found", "method-not-allowed", "internal-error"}


async def fetch(client: Client) -> dict[str, Any]:
    """Fetch the description."""
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    description: dict[str, Any] = await answer.get_json()
    return description


def operations(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each operation that is described."""
    for path in description["paths"].values():
        yield from path.values()


def types_of(schema: dict[str, Any]) -> list[str]:
    """Return the types of problem that a schema allows."""
    type_ = schema["properties"]["type"]
    return list(type_["enum"]) if "enum" in type_ else [type_["const"]]


async def test_description_is_valid(client: Client) -> None:
    """The description is OpenAPI 3.1 and carries the package's version."""
    description = await fetch(client)

    validate(description)
    assert description["openapi"].startswith("3.1")
    assert description["info"]["version"] == __version__


async def test_every_route_documents_every_status(app: Quart, client: Client) -> None:
    """Each method of each route is described, with each status it can give and no other."""
    paths = (await fetch(client))["paths"]
    routes = {
        (method.lower(), re.sub(r"<(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"OPTIONS"}
        if not rule.rule.startswith(("/docs", "/openapi", "/metrics"))
    }

    described = {(method, path): set(paths[path][method]["responses"]) for path in paths for method in paths[path]}

    assert set(described) == routes
    assert described == STATUSES


async def test_every_operation_and_answer_is_explained(client: Client) -> None:
    """Operations have a summary, a description and an id of their own; answers say what they mean."""
    described = list(operations(await fetch(client)))

    assert all(operation["summary"].endswith(".") for operation in described)
    assert all(operation["description"] == operation["description"].strip() for operation in described)
    assert all(answer["description"] for operation in described for answer in operation["responses"].values())
    assert all(operation["tags"] for operation in described)
    assert len({operation["operationId"] for operation in described}) == len(described)
    assert all(operation["requestBody"]["required"] for operation in described if "requestBody" in operation)


async def test_problems_have_their_media_type(client: Client) -> None:
    """Errors are described as problem+json, and those that pass with the header that says when."""
    paths = (await fetch(client))["paths"]

    for path in paths.values():
        for method, operation in path.items():
            for status, answer in operation["responses"].items():
                kind = "application/json" if status < "400" else "application/problem+json"
                assert list(answer.get("content", {})) == ([] if method == "head" else [kind])
                assert ("Retry-After" in answer.get("headers", {})) == (status in ("429", "503"))


async def test_bounds_are_described(client: Client) -> None:
    """The description of bodies has the bounds and the default that hold."""
    paths = (await fetch(client))["paths"]
    schema = paths["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    ttl = schema["properties"]["ttl"]
    assert schema["required"] == ["secret", "passphrase"]
    assert schema["additionalProperties"] is False
    assert (ttl["minimum"], ttl["maximum"], ttl["default"]) == (60, 2_592_000, 604_800)
    assert schema["properties"]["secret"]["maxLength"] == 65_536
    for ttl_sent, status in ((59, 400), (60, 201), (2_592_000, 201), (2_592_001, 400)):
        assert (
            await post(client, "/generate", {"secret": "s", "passphrase": "p", "ttl": ttl_sent})
        ).status_code == status


async def test_every_problem_is_documented(client: Client) -> None:
    """Each row of the table is among the types of some operation's answers, with its members, and no other type is."""
    documented = {
        (status, type_): set(schema["properties"])
        for operation in operations(await fetch(client))
        for status, answer in operation["responses"].items()
        for schema in (content["schema"] for content in answer.get("content", {}).values())
        if status >= "400"
        for type_ in types_of(schema)
    }
    rows = {
        (str(row.status), problems.TYPE + row.name): set(problems.Problem.model_fields) | set(row.members)
        for row in problems.TABLE
        if row.name not in OF_NO_OPERATION
    }

    assert set(documented) == set(rows)
    assert all(members <= documented[row] for row, members in rows.items())


def check_described(description: dict[str, Any], operation: str, status: int, answer: Response, text: str) -> None:
    """Check that an answer has the status named, and the headers and the body that its operation describes for it."""
    method, path = operation.split()
    described = description["paths"][path][method]["responses"][str(status)]
    ((media_type, content),) = described["content"].items()
    assert (answer.status_code, answer.content_type) == (status, media_type)
    assert all(name in answer.headers for name in described.get("headers", {}))
    # References are resolved from the root of the schema.
    schema = {**content["schema"], "components": description["components"]}
    OAS31Validator(schema, format_checker=oas31_format_checker).validate(json.loads(text))


async def test_answers_fit_the_description(client: Client, created: Created) -> None:
    """What is answered is what is described for its operation and status."""
    description = await fetch(client)
    body = {"secret": "s", "passphrase": "p"}
    create, read_, look = "post /generate", "post /secrets/{secret_key}", "get /secrets/{secret_key}"
    receipt, burn = "get /receipts/{receipt_key}", "delete /receipts/{receipt_key}"
    secret_path, receipt_path = f"/secrets/{created.secret_key}", f"/receipts/{created.receipt_key}"

    answers = [
        (create, 201, await post(client, "/generate", body)),
        (create, 400, await post(client, "/generate", {"secret": 1, "unknown": 2})),
        (create, 400, await post(client, "/generate", b"{")),
        (create, 413, await post(client, "/generate", b" " * 500_000)),
        (create, 415, await post(client, "/generate", body, **{"Content-Type": "text/plain"})),
        (look, 200, await client.get(secret_path)),
        (receipt, 200, await client.get(receipt_path)),
        (read_, 403, await read(client, created.secret_key, "wrong")),
        (read_, 200, await read(client, created.secret_key)),
        (read_, 404, await read(client, created.secret_key)),
        (look, 404, await client.get(secret_path)),
        (receipt, 200, await client.get(receipt_path)),
        (burn, 409, await client.delete(receipt_path)),
        (receipt, 404, await client.get(f"/receipts/{created.secret_key}")),
        ("get /health/live", 200, await client.get("/health/live")),
        ("get /health/ready", 200, await client.get("/health/ready")),
    ]

    for operation, status, answer in answers:
        check_described(description, operation, status, answer, await answer.get_data(as_text=True))


@pytest.mark.parametrize("settings", [{"rate_limit": 4}], indirect=True)
async def test_refusals_fit_the_description(client: Client, created: Created, intercept: Intercept) -> None:
    """What is refused because of the database or the limit is what is described for its operation and status."""
    description = await fetch(client)

    async def fail(*_: Any, **__: Any) -> None:
        raise AutoReconnect

    for collection in ("secrets", "envelopes"):
        intercept(collection, "find_one", fail)

    answers = [
        ("get /health/ready", 503, await client.get("/health/ready")),
        ("get /secrets/{secret_key}", 503, await client.get(f"/secrets/{created.secret_key}")),
        ("post /secrets/{secret_key}", 503, await read(client, created.secret_key)),
        ("delete /receipts/{receipt_key}", 503, await client.delete(f"/receipts/{created.receipt_key}")),
        ("post /generate", 429, await post(client, "/generate", b"{")),
    ]

    for operation, status, answer in answers:
        check_described(description, operation, status, answer, await answer.get_data(as_text=True))
