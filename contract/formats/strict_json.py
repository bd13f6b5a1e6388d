"""Parse untrusted JSON strictly: anything that two parsers could read differently is rejected."""

from __future__ import annotations

import json
from typing import Any

from qwen3vl_edge.contract.errors import LimitError, WireError

_PIECE_BYTES = 256 * 1024
LIST_VALUES = 8  # an empty list takes so many times a number's time to parse, with the interpreter locked


def count_values(text: str | bytes | bytearray) -> int:
    """At least as many as the JSON text has values, counted without parsing: a value follows a bracket or a comma.

    A list or an object counts as LIST_VALUES. Commas and brackets within strings count too.
    """
    if isinstance(text, str):
        return 1 + text.count(",") + LIST_VALUES * (text.count("[") + text.count("{"))
    return 1 + text.count(b",") + LIST_VALUES * (text.count(b"[") + text.count(b"{"))


def _count_outside_strings(text: bytes) -> int:
    """As `count_values`, without what stands in strings. With arrays, which leave the interpreter to others."""
    import numpy as np

    characters = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    count, inside = 1, np.uint8(0)
    for at in range(0, len(characters), _PIECE_BYTES):
        piece = characters[at : at + _PIECE_BYTES]
        quotes = np.bitwise_xor.accumulate((piece == ord('"')).view(np.uint8)) ^ inside
        inside = quotes[-1]
        outside = piece[quotes == 0]
        lists = np.count_nonzero(outside == ord("[")) + np.count_nonzero(outside == ord("{"))
        count += int(np.count_nonzero(outside == ord(","))) + LIST_VALUES * int(lists)
    return count


def check_values(text: str | bytes | bytearray, most: int, field: str, setting: str | None = None) -> int:
    """Count the values of untrusted JSON before it is parsed: parsed, a value of two characters takes a hundred bytes.

    Args:
        field: the field that an error names.
        setting: the setting that sets the limit.

    Returns:
        What they count; commas and brackets in strings count where that changes nothing.

    Raises:
        LimitError: more than `most`.
    """
    count = count_values(text)
    if count > most:
        count = _count_outside_strings(text.encode() if isinstance(text, str) else bytes(text))
    if count > most:
        limit = f"at most {most}" if setting is None else f"at most {most} ({setting})"
        raise LimitError(f"{field} has too many JSON values", field=field, expected=limit, got=count)
    return count


def strict_object(text: str | bytes, field: str, max_values: int | None = None) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        field: the field that an error names.
        max_values: the most values of untrusted text.

    Raises:
        WireError: not JSON, not an object, a repeated name, nested too deeply, a number of thousands of digits, or a
            lone surrogate, which cannot be encoded as UTF-8 again.
        LimitError: more than `max_values` values.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise WireError(f"{field} repeats a name", field=_first_repeated(pairs)[:80])
        return members

    if max_values is not None:
        check_values(text, max_values, field)
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


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("no name is repeated")
