"""The prompts of a parity run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_edge.edge_runtime.inputs.messages_file import read_conversations

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
    """The conversations of a JSON-lines file: `edge_runtime/inputs/messages_file.py`, named by this command's option.

    Raises:
        InputError: missing, or a line that is not such an object.
    """
    return read_conversations(path, "--prompts")
