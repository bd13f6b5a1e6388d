"""Conversations from a JSON-lines file, in Qwen's message format."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.media import Message

Conversation = tuple[str, list[Message]]


def read_conversations(path: Path, option: str) -> list[Conversation]:
    """JSON lines with `messages` and perhaps `id`; media paths are relative to the file's folder.

    Args:
        path: the file.
        option: the command's option that named it, for errors.

    Raises:
        InputError: missing, a line that is not such an object, or no line at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path} cannot be read ({reason})", field=option) from None
    conversations = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            messages = document["messages"]
            rooted = [_rooted(message, path.parent) for message in messages]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}:{number} is not an object with messages", field=option) from None
        conversations.append((str(document.get("id", number)), rooted))
    if not conversations:
        raise InputError(f"{path} has no conversation", field=option)
    return conversations


def _rooted(message: Message, folder: Path) -> Message:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = []
    for part in content:
        part = dict(part)
        for kind in ("image", "video"):
            value = part.get(kind)
            if isinstance(value, str) and "://" not in value and not value.startswith(("data:", "/")):
                part[kind] = str(folder / value)
        parts.append(part)
    return {**message, "content": parts}
