"""Parse untrusted JSON strictly: anything that two parsers could read differently is rejected."""

from __future__ import annotations

import json
from typing import Any

from qwen3vl_edge.contract.errors import WireError


def strict_object(text: str | bytes, field: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        field: the field that an error names.

    Raises:
        WireError: not JSON, not an object, a repeated name, nested too deeply, a number of thousands of digits, or a
            lone surrogate, which cannot be encoded as UTF-8 again.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            names = [name for name, _ in pairs]
            raise WireError(f"{field} repeats a name", field=next(name for name in names if names.count(name) > 1)[:80])
        return members

    try:
        # json.loads would decode bytes as UTF-16 or UTF-32 too, with lone surrogates in them.
        text = text.decode() if isinstance(text, bytes) else text
        document = json.loads(text, object_pairs_hook=unique)
        if "\\u" in text:  # after UTF-8 decoding only an escape can be a lone surrogate
            json.dumps(document, ensure_ascii=False).encode()
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"{field} is not JSON", field=field, got=type(error).__name__) from None
    if not isinstance(document, dict):
        raise WireError(f"{field} is not a JSON object", field=field, got=type(document).__name__)
    return document
