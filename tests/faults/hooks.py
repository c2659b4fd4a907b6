"""What schemathesis is told of the API that JSON Schema can't say."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Draw no 60.0 for 60: an integer to JSON Schema, but the API takes no floats."""
    if isinstance(body, dict) and isinstance(body.get("ttl"), float) and body["ttl"].is_integer():
        return {**body, "ttl": int(body["ttl"])}
    return body
