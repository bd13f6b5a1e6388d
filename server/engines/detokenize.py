"""Convert token ids to text incrementally, never returning half a character."""

from __future__ import annotations

from typing import Any

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Text of a growing answer; the pieces concatenate to the text of decoding all ids at once.

    Qwen's tokenizer is a byte-level BPE: a token may end inside a character, and decoding then yields
    one U+FFFD at the end for the incomplete bytes. It is held back until the next token completes it
    or shows that the bytes are invalid. Byte-level tokens need no left context, so finished
    tokens are dropped and the cost of a step does not grow with the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._shown = 0  # characters of the pending tokens' text that were returned already

    def add(self, token_id: int) -> str:
        """The text that this token adds; empty while a character is incomplete, and for special tokens."""
        self._pending.append(token_id)
        text = decode(self._tokenizer, self._pending)
        if text.endswith(REPLACEMENT):
            piece = text[self._shown : -1]
            self._shown = max(self._shown, len(text) - 1)
            return piece
        piece = text[self._shown :]
        self._pending, self._shown = [], 0
        return piece

    def finish(self) -> str:
        """The text held back at the end of the answer: U+FFFD for an incomplete character."""
        text = decode(self._tokenizer, self._pending)[self._shown :] if self._pending else ""
        self._pending, self._shown = [], 0
        return text


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of token ids without special tokens and without cleanup of spaces."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
