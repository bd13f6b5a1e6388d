"""All error messages of the package in one readable list, and the rules that each of them keeps."""

from __future__ import annotations

import re

import pytest

from tests.error_messages import LIST, PLACEHOLDER, Message, error_messages, listing

MESSAGES = error_messages()
# What a message may not hold. It names the input and the limit; the remedy is a sentence of its own.
FORBIDDEN = {
    "a trailing period": r"\.$",
    "a line break": r"\n",
    "a verb of speech": r"\b(spoken|told|said)\b",
    "'is not one' without saying of what": r"\bis not one\b(?! (of|that)\b)",
    "'no sizes'": r"\bno sizes\b",
}


def test_the_list_is_up_to_date() -> None:
    """`python -m tests.error_messages` rewrites it."""
    assert LIST.read_text(encoding="utf-8") == listing(MESSAGES)


def test_the_list_holds_the_messages_of_every_part() -> None:
    """Literals, f-strings, choices between two, and messages that a class sets itself."""
    texts = {(message.error, message.code, message.field): message.text for message in MESSAGES}
    assert texts["QueueFullError", "queue_full", ""] == "the queue is full"
    assert ("UnauthorizedError", "invalid_api_key", "") in texts
    assert texts["TooOftenError", "rate_limited", ""] == "too many requests"
    assert len(MESSAGES) > 400
    assert len({message.file.split("/")[0] for message in MESSAGES}) == 6


@pytest.mark.parametrize("why", FORBIDDEN)
def test_no_message_has(why: str) -> None:
    broken = [str(message) for message in MESSAGES if re.search(FORBIDDEN[why], message.text)]
    assert broken == []


def test_messages_start_in_lower_case() -> None:
    assert [str(message) for message in MESSAGES if not _starts_low(message)] == []


def _starts_low(message: Message) -> bool:
    """A name may keep its capitals: TensorRT, ONNX."""
    first = message.text.removeprefix(PLACEHOLDER).split(" ")[0]
    return not first[:1].isupper() or any(letter.isupper() for letter in first[1:])
