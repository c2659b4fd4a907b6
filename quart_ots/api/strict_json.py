"""Bodies as RFC 7493 (I-JSON) has them, so that no two parsers can read one differently."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from quart import Request

from .problems import MalformedBodyError, UnsupportedMediaTypeError

# The blueprint whose bodies are read so; another API has its own rules.
BLUEPRINT = "secrets"


class StrictRequest(Request):
    """A request whose JSON is read strictly where it is for this API: UTF-8, each name once, no NaN, no BOM."""

    async def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """Parse the body. For this API, the arguments, which are Quart's, have no effect.

        Raises:
            UnsupportedMediaTypeError: Anything but plain application/json in UTF-8 was announced.
            RequestEntityTooLarge: The body is over MAX_CONTENT_LENGTH.
            MalformedBodyError: It is not JSON, or ambiguous.

        """
        if self.blueprint != BLUEPRINT:
            return await super().get_json(force, silent, cache)
        charset = self.mimetype_params.get("charset", "utf-8").lower()
        if self.mimetype != "application/json" or charset != "utf-8" or "Content-Encoding" in self.headers:
            raise UnsupportedMediaTypeError
        return parse_json(await self.get_data(cache=False, as_text=False, parse_form_data=False))


def parse_json(body: bytes) -> Any:
    """Parse JSON strictly, or raise MalformedBodyError, which never quotes the body."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MalformedBodyError("The body is not UTF-8.") from None
    if text.startswith("\ufeff"):
        raise MalformedBodyError("The body starts with a byte order mark.")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise MalformedBodyError("The body is nested too deep.") from None
    except ValueError:
        # Also raised for a number of more digits than Python converts.
        raise MalformedBodyError("The body is not JSON.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, unless it has a name twice: parsers differ in which of the two they take."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedBodyError("The body has a name twice in one object.")
    return members


def _no_constant(_: str) -> NoReturn:
    raise MalformedBodyError("The body has NaN or Infinity, which JSON lacks.")
