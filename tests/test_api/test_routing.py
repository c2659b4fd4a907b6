"""What is served, who is limited, and what is said of the rest."""

from __future__ import annotations

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

from tests.conftest import Created, post, read
from tests.test_api.conftest import check_problem

KEY = "a" * 43
# What no budget counts: for load balancers, for Prometheus, and for people who look at the docs.
EXEMPT = {"/openapi.json", "/docs", "/docs/<name>", "/health/live", "/health/ready", "/metrics"}


@pytest.mark.parametrize("settings", [{"rate_limit": 1}], indirect=True)
async def test_every_route_is_limited_or_exempt(app: Quart, client: Client) -> None:
    """With its budget spent, a client is refused on every route and method but on those that are exempt by name."""
    await client.get(f"/receipts/{KEY}")
    routes = [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]

    refused = {
        (method, route)
        for method, route in routes
        if (await client.open(route.replace("<", "").replace(">", ""), method=method, json=None)).status_code == 429
    }

    assert refused == {(method, route) for method, route in routes if route not in EXEMPT}
    assert {route for _, route in routes} >= EXEMPT


@pytest.mark.parametrize("settings", [{"rate_limit": 1}], indirect=True)
async def test_over_the_budget(client: Client) -> None:
    """A client over its budget is told so before its body is judged, and when to come back."""
    await client.get(f"/receipts/{KEY}")

    answer = await post(client, "/generate", b"{")

    await check_problem(answer, 429, "too-many-requests")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs/index.html", 404),
        ("POST", "/generate/", 404),
        ("GET", f"/secrets/{KEY}/", 404),
        ("GET", f"/secrets/{KEY}/../x", 404),
        ("GET", "/secrets/", 404),
        ("GET", "/secrets//", 404),
        ("GET", "/secrets/%2e%2e%2fx", 404),
        ("OPTIONS", "/nowhere", 404),
        ("BREW", "/nowhere", 404),
        ("GET", "/generate", 405),
        ("PUT", "/generate", 405),
        ("DELETE", f"/secrets/{KEY}", 405),
        ("POST", f"/receipts/{KEY}", 405),
        ("POST", "/health/live", 405),
        ("POST", "/docs", 405),
        ("BREW", "/generate", 405),
    ],
)
async def test_routing_errors_are_problems(client: Client, method: str, path: str, status: int) -> None:
    """What is not served is a problem without a redirect and without the path; 405 says what is allowed."""
    answer = await client.open(path, method=method, json=None)

    assert KEY not in str(answer.headers)
    assert ("Allow" in answer.headers) == (status == 405)
    assert "Location" not in answer.headers
    problem = await check_problem(answer, status, {404: "not-found", 405: "method-not-allowed"}[status])
    assert KEY not in str(problem)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/generate", {"POST", "OPTIONS"}),
        (f"/secrets/{KEY}", {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"/receipts/{KEY}", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("/health/live", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_options(client: Client, path: str, allowed: set[str]) -> None:
    """OPTIONS lists what a path does, and so does the 405 of a method that it does not do."""
    options, refused = await client.options(path), await client.patch(path)

    assert options.status_code == 200
    assert set(options.headers["Allow"].split(", ")) == set(refused.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/docs", "html"),
        ("/docs/docs.js", "javascript"),
        ("/docs/swagger-ui-bundle.js", "javascript"),
        ("/docs/swagger-ui.css", "text/css"),
        ("/docs/favicon-32x32.png", "image/png"),
    ],
)
async def test_docs_page_is_served_whole(client: Client, path: str, kind: str) -> None:
    """The docs page and all that it loads come from the service itself."""
    answer = await client.get(path)

    assert answer.status_code == 200
    assert kind in str(answer.content_type)
    assert len(await answer.get_data()) > 100


async def test_every_answer_has_the_security_headers(client: Client, created: Created) -> None:
    """No answer may be stored, sniffed, or tell others where it came from; errors are no exception."""
    answers = [
        await client.get("/health/live"),
        await client.get("/nowhere"),
        await client.put("/generate"),
        await client.options("/generate"),
        await client.get("/docs"),
        await client.get("/docs/swagger-ui.css"),
        await client.get("/openapi.json"),
        await read(client, KEY),
        await post(client, "/generate", b"{"),
        await client.get(f"/receipts/{created.receipt_key}"),
    ]

    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Expires" not in answer.headers
