"""Conversations from a JSON-lines file, in Qwen's message format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.messages import Message, checked_messages

_MEDIA = ("image", "image_url", "video")
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
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}:{number} is not an object with messages", field=option) from None
        rooted = [_rooted(message, path.parent) for message in read_messages(messages, f"{path}:{number}", option)]
        conversations.append((str(document.get("id", number)), rooted))
    if not conversations:
        raise InputError(f"{path} has no conversation", field=option)
    return conversations


def read_messages(messages: Any, where: str, option: str) -> list[Message]:
    """A conversation from a file.

    Args:
        where: the file, and the line in it.
        option: as `read_conversations`.

    Raises:
        InputError: it is none; names the file, and what is wrong.
    """
    try:
        return checked_messages(messages)
    except InputError as error:
        error.message = f"{where}: {error.message}"
        error.field = option
        raise


def _rooted(message: Message, folder: Path) -> Message:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = []
    for part in content:
        parts.append({name: _below(value, folder) if name in _MEDIA else value for name, value in part.items()})
    return {**message, "content": parts}


def _below(value: Any, folder: Path) -> Any:
    """A relative path under the folder; of a list or OpenAI's object, those in it."""
    if isinstance(value, list):
        return [_below(item, folder) for item in value]
    if isinstance(value, dict) and "url" in value:
        return {**value, "url": _below(value["url"], folder)}
    if not isinstance(value, str) or "://" in value or value[:5].lower() in ("data:", "file:") or value[:1] == "/":
        return value
    return str(folder / value)
