"""Convert Qwen's `<tool_call>` blocks to OpenAI's `tool_calls`, if they have exactly the template's form."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

# The template puts a line break before a block that follows text.
MARKERS = ("\n<tool_call>", "<tool_call>")
_BLOCK = re.compile(
    r"\s*<tool_call>\s*\{\s*"
    r'"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*'
    r'"arguments"\s*:\s*(?P<arguments>\{.*?\})\s*'
    r"\}\s*</tool_call>\s*",
    re.DOTALL,
)


def parse_calls(text: str, names: Collection[str], request_id: str) -> list[dict[str, Any]] | None:
    """The calls at the end of an answer, from its first block on.

    Args:
        names: names of the request's tools.

    Returns:
        None unless `text` consists of blocks, each with a known name and an object of arguments. The arguments are the
        model's text, unchanged.
    """
    calls: list[dict[str, Any]] = []
    position = 0
    while position < len(text):
        block = _BLOCK.match(text, position)
        if block is None:
            return None
        position = block.end()
        name, arguments = _json(block["name"]), _json(block["arguments"])
        if name not in names or not isinstance(arguments, dict):
            return None
        function = {"name": name, "arguments": block["arguments"]}
        calls.append({"id": f"call_{request_id}_{len(calls)}", "type": "function", "function": function})
    return calls or None


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and infinity, which are not JSON
