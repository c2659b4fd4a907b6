"""openapi.json: that it is valid, complete, and true."""

import re
from typing import Any

from openapi_spec_validator import validate
from quart import Quart
from quart.typing import TestClientProtocol as Client

from quart_ots import __version__
from tests.conftest import Created, post, read

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


async def fetch(client: Client) -> dict[str, Any]:
    """Fetch the description."""
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    description: dict[str, Any] = await answer.get_json()
    return description


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
    paths = (await fetch(client))["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]

    assert all(operation["summary"].endswith(".") for operation in operations)
    assert all(answer["description"] for operation in operations for answer in operation["responses"].values())
    assert all(operation["tags"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["requestBody"]["required"] for operation in operations if "requestBody" in operation)


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


async def test_answers_fit_the_description(client: Client, created: Created) -> None:
    """What is answered has the members that are described."""
    paths = (await fetch(client))["paths"]
    cases = [
        ("get", "/secrets/{secret_key}", await client.get(f"/secrets/{created.secret_key}")),
        ("get", "/receipts/{receipt_key}", await client.get(f"/receipts/{created.receipt_key}")),
        ("post", "/secrets/{secret_key}", await read(client, created.secret_key, "wrong")),
        ("post", "/secrets/{secret_key}", await read(client, created.secret_key)),
        ("post", "/secrets/{secret_key}", await read(client, created.secret_key)),
        ("delete", "/receipts/{receipt_key}", await client.delete(f"/receipts/{created.receipt_key}")),
        ("post", "/generate", await post(client, "/generate", {"secret": 1})),
        ("post", "/generate", await post(client, "/generate", {"secret": "s", "passphrase": "p"})),
        ("get", "/health/live", await client.get("/health/live")),
    ]

    for method, path, answer in cases:
        (content,) = paths[path][method]["responses"][str(answer.status_code)]["content"].values()
        body = await answer.get_json(force=True)
        properties = content["schema"]["properties"]
        assert set(body) == set(properties)
        for name, value in body.items():
            allowed = properties[name].get("enum", [properties[name].get("const", value)])
            assert value in allowed
