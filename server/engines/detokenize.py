"""Token ids to text, one at a time, without ever showing half a character."""

from __future__ import annotations

from typing import Any

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Text of a growing answer; the pieces join to what decoding all ids at once gives.

    Qwen's tokenizer is a byte-level BPE: a token may end inside a character, and decoding that yields
    one U+FFFD at the end for its bytes so far. That one is held back until the next token completes it
    or proves that the bytes were no character. Byte-level tokens need no left context, so decided
    tokens are dropped and the cost of a step does not grow with the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._shown = 0  # characters of the pending tokens' text that were returned already

    def add(self, token_id: int) -> str:
        """What this token adds to the text; empty while a character is incomplete, and for special tokens."""
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
        """What was held back, once no more tokens come: U+FFFD for a character cut off by the end."""
        text = decode(self._tokenizer, self._pending)[self._shown :] if self._pending else ""
        self._pending, self._shown = [], 0
        return text


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of token ids without special tokens, exactly as the bytes say."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
