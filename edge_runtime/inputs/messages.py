"""The shape of a conversation in Qwen's format, checked before its media are opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.pixels.part_options import NUMBERS, check_numbers

Message = dict[str, Any]
CONTENTS = ("text", "image", "image_url", "video")
_OF_A_PART = (*CONTENTS, *NUMBERS)  # fields of errors that know nothing of the conversation


def checked_messages(messages: Sequence[Message]) -> list[Message]:
    """The conversation without what is None: data sets write so what a part does not have.

    Raises:
        InputError: not such a conversation; names the message and part at fault.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError("messages are empty or not a list", field="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def hidden_media(messages: Sequence[Message]) -> InputError | None:
    """The error for a chat template that wrote fewer pictures than there are: Qwen's shows only those of users."""
    for index, message in enumerate(messages):
        if message["role"] != "user" and any(True for _ in media_parts([message])):
            return InputError(
                "the chat template shows no picture or clip here",
                field=f"messages[{index}]",
                expected="pictures and clips in messages of the user",
                got=f"one in a message of the {message['role'][:40]}",
                remedy="Put it into a message of the user.",
            )
    return None


def media_parts(messages: Sequence[Message]) -> Iterator[Message]:
    """The parts that are pictures or clips, in order."""
    return (part for _, part in placed_media_parts(messages))


def placed_media_parts(messages: Sequence[Message]) -> Iterator[tuple[str, Message]]:
    """The parts that are pictures or clips, in order, each after its path, such as "messages[0].content[1]"."""
    for index, message in enumerate(messages):
        for number, part in enumerate(message["content"] if isinstance(message["content"], list) else ()):
            if kind_of(part) != "text":
                yield f"messages[{index}].content[{number}]", part


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Have errors about a part's picture or clip, or about an option of it, name its path."""
    try:
        yield
    except ContractError as error:
        if error.field is None or error.field in _OF_A_PART:
            error.field = f"{where}.{error.field}" if error.field else where
        raise


def clip_sources(messages: Sequence[Any]) -> Iterator[Any]:
    """What a conversation's clips are read from, before it is checked; None of a part that only says that it is one."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            if isinstance(part, dict) and (part.get("video") is not None or part.get("type") == "video"):
                yield part.get("video")


def kind_of(part: Message) -> str:
    """ "text", "image" or "video"."""
    name = next((name for name in CONTENTS if part.get(name) is not None), part.get("type"))
    return "image" if name in ("image", "image_url") else "video" if name == "video" else "text"


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message.get("content") is None:
        raise InputError(f"{where} is malformed", field=where, expected="role and content")
    content = message["content"]
    if isinstance(content, str):
        return message
    if not isinstance(content, (list, tuple)):
        raise InputError(f"{where}.content is malformed", field=where, expected="a string or a list of parts")
    return {**message, "content": [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]}


def _part(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise InputError(f"{where} has no content", field=where, expected=" or ".join(CONTENTS))
    part: Message = {name: value for name, value in given.items() if value is not None}
    found = [name for name in CONTENTS if name in part]
    if len(found) > 1 and part.get("text") == "":
        del part["text"]
        found.remove("text")
    if not found:
        raise InputError(f"{where} has no content", field=where, expected=" or ".join(CONTENTS))
    if len(found) > 1:  # the template and the preprocessing would each drop one of them
        raise InputError(
            f"{where} has more than one content",
            field=where,
            expected="one",
            got=" and ".join(found),
            remedy="Make each a part of its own.",
        )
    said = part.get("type", found[0])
    if said in CONTENTS and said != "text" and kind_of({"type": said}) != kind_of(part):
        raise InputError(f"{where} is of type {said}", field=where, expected=said, got=found[0])
    if "text" in part and not isinstance(part["text"], str):
        raise InputError(f"{where}.text is not a string", field=where, expected="a string", got=_type(part["text"]))
    check_numbers(part, where)
    return part


def _type(value: Any) -> str:
    return type(value).__name__
