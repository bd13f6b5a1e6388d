"""JSON from outside, with nothing in it that two readers could take for two things."""

from __future__ import annotations

import json
from typing import Any

from qwen3vl_edge.contract.errors import WireError


def strict_object(text: str | bytes, field: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        field: its name in errors.

    Raises:
        WireError: no JSON, no object, a repeated name, nested too deeply, a number of thousands of digits, or half a
            character (a lone surrogate), which no answer could repeat.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise WireError(f"{field} repeats a name", field=next(name for name in names if names.count(name) > 1)[:80])
        return found

    try:
        # json.loads would take bytes for UTF-16 or UTF-32 as well, and halves of characters in them.
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text, object_pairs_hook=unique)
        if "\\u" in text:  # only an escape can be half a character now
            json.dumps(found, ensure_ascii=False).encode()
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"{field} is not JSON", field=field, got=type(error).__name__) from None
    if not isinstance(found, dict):
        raise WireError(f"{field} is not a JSON object", field=field, got=type(found).__name__)
    return found
