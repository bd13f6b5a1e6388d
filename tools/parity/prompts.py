"""Which questions a parity run asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.errors import InputError

Prompt = tuple[str, list[dict[str, Any]]]
_QUESTIONS = ("Describe this picture.", "What colours do you see?", "How many objects are there?")


def prompts_about(pictures: dict[str, Any]) -> list[Prompt]:
    """Questions about each picture, one about two of them, a second turn and one without any."""
    prompts: list[Prompt] = []
    for name, picture in pictures.items():
        image = {"type": "image", "image": picture}
        prompts += [(f"{name}: {question}", [_user(image, question)]) for question in _QUESTIONS]
    names = list(pictures)
    if len(names) > 1:
        pair = [{"type": "image", "image": pictures[name]} for name in names[:2]]
        prompts.append((f"{names[0]} and {names[1]}", [_user(*pair, "What is different?")]))
    turns = [_user({"type": "image", "image": pictures[names[0]]}, _QUESTIONS[2])]
    turns += [{"role": "assistant", "content": "There are 2 objects."}, _user("Are you sure?")]
    return [*prompts, ("second turn", turns), ("text only", [_user("What can you tell me?")])]


def _user(*parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def read_prompts(path: Path) -> list[Prompt]:
    """JSON lines with `messages` and perhaps `id`; media paths are relative to the file's folder.

    Raises:
        InputError: missing, or a line that is not such an object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field="--prompts") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            messages = document["messages"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}:{number} is not an object with messages", field="--prompts") from None
        prompts.append((str(document.get("id", number)), [_rooted(message, path.parent) for message in messages]))
    if not prompts:
        raise InputError(f"{path} holds no prompts", field="--prompts")
    return prompts


def _rooted(message: dict[str, Any], folder: Path) -> dict[str, Any]:
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
