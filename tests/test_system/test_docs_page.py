"""The docs page in a browser that reaches nothing but the service."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.service import ROOT, Service

CHROMIUM = shutil.which("chromium")
EXAMPLE = "The treasure is under the third palm."
ARTIFACTS = Path(os.environ.get("ARTIFACTS", ROOT / "artifacts"))

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """A page that may only ask the service; whatever else it asks for, or complains of, fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    complaints: list[str] = []

    def only_the_service(route: Route) -> None:
        if route.request.url.startswith((service.url, "data:")):
            route.continue_()
        else:
            complaints.append(f"asked for {route.request.url}")
            route.abort()

    page.route("**/*", only_the_service)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{service.url}/docs")
    yield page
    page.close()
    assert complaints == []


def test_page_shows_all_operations(page: Page) -> None:
    """Each operation is on the page with its summary, and nothing is asked of other servers."""
    expect(page.locator(".opblock")).to_have_count(11)
    for summary in ("Create a secret.", "Read a secret, once.", "Burn a secret before it is read."):
        expect(page.get_by_text(summary, exact=True).first).to_be_visible()


def test_try_it_out_creates_a_secret(page: Page, service: Service) -> None:
    """Try it out on POST /generate sends the example and shows a 201 with a key that reads the secret."""
    operation = page.locator("#operations-secrets-generate")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()

    operation.get_by_role("button", name="Execute").click()

    answer = operation.locator(".live-responses-table tbody .response-col_description .microlight").first
    expect(operation.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("201")
    expect(answer).to_contain_text("secret_key")
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "docs.png", full_page=True)
    keys = {name: answer.inner_text().split(f'"{name}": "')[1][:43] for name in ("secret_key", "receipt_key")}
    service.sent |= {keys["receipt_key"], EXAMPLE}
    assert service.read(keys["secret_key"]).json() == {"secret": EXAMPLE}
