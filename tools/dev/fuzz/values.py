"""JSON documents with something odd in them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

HUGE = "<<a number of 5,000 digits>>"  # the JSON module would not write one
_PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**30, 0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), HUGE),
    *(
        "",
        " ",
        "0",
        "x",
        "a" * 300,
        "\x00",
        "\x1b[2J",
        "\ud800",
        "\udfff\ud800",
        "\u202e",
        "e\u0301" * 9,
        "그림",
        "😀",
        "\u2028",
    ),
    *("../../etc/passwd", "%s%n{0}", "F32", "U8", "BF16", "image", "video", "0" * 64, "g" * 64),
)
_MADE: tuple[Callable[[], Any], ...] = (
    *(list, dict, lambda: [[]], lambda: [None], lambda: {"": {}}, lambda: [1] * 50, lambda: _deep(60)),
    lambda: {"kind": "image"},
)


def odd(rng: random.Random) -> Any:
    """A value that stands where another was meant."""
    at = rng.randrange(len(_PLAIN) + len(_MADE))
    return _PLAIN[at] if at < len(_PLAIN) else _MADE[at - len(_PLAIN)]()


def mutate_document(document: Any, rng: random.Random, times: int) -> Any:
    """Change a parsed document in place at random places; returns it, or what stands in its place."""
    for _ in range(times):
        place = _place(document, rng)
        if place is None:
            return odd(rng)
        holder, key = place
        action = rng.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(key, odd(rng))
        elif action == 1:
            holder[str(odd(rng))[:40]] = holder[key]
        elif action == 2 and (other := _place(document, rng)) is not None:
            holder[key] = copy.deepcopy(other[0][other[1]])
        elif action == 3 and isinstance(holder[key], int | float):
            holder[key] = _near(holder[key], rng)
        else:
            holder[key] = odd(rng)
    return document


def write(document: Any, rng: random.Random) -> bytes:
    """The document's text: escaped or not, with a repeated name now and then."""
    ascii_only = rng.random() < 0.5
    text = json.dumps(document, ensure_ascii=ascii_only)
    if HUGE in text:
        text = text.replace(json.dumps(HUGE), "9" * 5000).replace(HUGE, "9" * 5000)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        name = rng.choice(list(document)) if document else "x"
        text = f"{{{json.dumps(name)}: {json.dumps(odd(rng), default=str)}, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


def _near(value: Any, rng: random.Random) -> Any:
    return rng.choice((value + 1, value - 1, -value, value * 2, value * 1_000_003, float(value), value // 2))


def _deep(levels: int) -> Any:
    nested: Any = 0
    for _ in range(levels):
        nested = [nested]
    return nested


def _place(document: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """A holder and the key of one of its nodes: as likely near the root as deep within; None where there is none."""
    place = None
    while isinstance(document, dict | list) and document:
        key = rng.choice(list(document)) if isinstance(document, dict) else rng.randrange(len(document))
        place, document = (document, key), document[key]
        if rng.random() < 0.4:
            break
    return place
