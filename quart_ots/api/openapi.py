"""The docs page and openapi.json. Everything the page loads is served from here: it works with no internet."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from quart import Blueprint, Quart, Response, send_from_directory
from quart_schema import DataSource, Info, OpenAPIProvider, QuartSchema, Tag, hide
from quart_schema.typing import Model
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter, Rule

from ..vault.crypto import KEY_LENGTH
from .problems import CONTENT_TYPE, Problem

STATIC = Path(__file__).with_name("static")
SWAGGER_FILES = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})
# Swagger UI draws its icons from data: URLs and sets style attributes.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DESCRIPTION = """\
A secret is read once, by someone who has its key and its passphrase, and never again.

Errors are `application/problem+json` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)). Times are UTC.
"""

blueprint = Blueprint("docs", __name__)


class Provider(OpenAPIProvider):
    """quart-schema's description of the API, with what it leaves out."""

    def generate_methods(self, rule: Rule) -> Iterable[str]:
        """Return the methods in the same order each time, HEAD among them."""
        return sorted((rule.methods or set()) - {"OPTIONS"})

    def operation_id(self, method: str, path: str, func: Callable[..., Any]) -> str:
        """Name an operation as its handler, for the sake of clients that are generated."""
        return f"head_{func.__name__}" if method == "HEAD" else func.__name__

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        """Drop the bodies of answers to HEAD, and the empty line that descriptions start with."""
        paths, components = super().build_paths(rule)
        for operations in paths.values():
            for operation in operations.values():
                operation["description"] = operation.get("description", "").strip()
            if "head" in operations:
                bare = {
                    status: {key: value for key, value in answer.items() if key != "content"}
                    for status, answer in operations["head"]["responses"].items()
                }
                operations["head"] = {**operations["head"], "responses": bare}
        return paths, components

    def build_path_parameter(self, name: str, converter: BaseConverter) -> dict[str, Any]:
        """Describe what a key looks like: the only parameters are keys."""
        schema = {"type": "string", "pattern": f"^[A-Za-z0-9]{{{KEY_LENGTH}}}$"}
        return {**super().build_path_parameter(name, converter), "schema": schema}

    def build_request_body(self, model: type[Model], source: DataSource) -> tuple[dict[str, Any], dict[str, Any]]:
        """Describe the body, and that it is required."""
        body, components = super().build_request_body(model, source)
        return {**body, "required": True, "description": model.__doc__}, components

    def build_response_object(
        self, model: type[Model], headers_model: type[Model] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give problems their media type, and those that may pass the header that says when."""
        answer, components = super().build_response_object(model, headers_model)
        if issubclass(model, Problem):
            answer["content"] = {CONTENT_TYPE: answer["content"]["application/json"]}
            if "Retry-After" in answer["description"]:
                header = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
                answer["headers"] = {"Retry-After": header}
        return answer, components


@blueprint.get("/docs")
@hide
async def page() -> Response:
    """Return the docs page."""
    response = await send_from_directory(STATIC, "docs.html")
    response.content_security_policy = POLICY
    return response


@blueprint.get("/docs/<name>")
@hide
async def file(name: str) -> Response:
    """Return one of the files that the docs page loads."""
    if name == "docs.js":
        return await send_from_directory(STATIC, name)
    if name not in SWAGGER_FILES:
        raise NotFound
    # Only the files of flask-swagger-ui are used: its code, for Flask, is never imported.
    spec = importlib.util.find_spec("flask_swagger_ui")
    assert spec is not None and spec.origin is not None
    return await send_from_directory(Path(spec.origin).with_name("dist"), name)


def init_app(app: Quart, version: str) -> None:
    """Serve /docs and /openapi.json."""
    tags: list[Tag | dict[str, Any]] = [
        Tag("secrets", "For creators and readers."),
        Tag("receipts", "For creators: what became of a secret, and the way to burn it."),
        Tag("health", "For load balancers and supervisors."),
    ]
    schema = QuartSchema(
        openapi_path="/openapi.json",
        swagger_ui_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
        info=Info("quart_ots", version, description=DESCRIPTION, summary="One-time secrets as a JSON API."),
        tags=tags,
        conversion_preference="pydantic",
        openapi_provider_class=Provider,
    )
    schema.init_app(app)
    app.register_blueprint(blueprint)
