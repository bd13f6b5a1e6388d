"""The visible text of one answer as its tokens arrive, in pieces, each with the tokens that begin in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.http.stop_matcher import StopStrings
from qwen3vl_edge.server.openai.tool_calls import MARKERS, parse_calls

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.detokenize import Detokenizer
    from qwen3vl_edge.server.engines.protocol import GenerateResult, Token


@dataclass(frozen=True)
class TextPiece:
    """A piece of the answer's text, and the tokens that begin in it."""

    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Ending:
    """The rest of an answer, once the generation has ended.

    Attributes:
        last_piece: None if no text remains.
        calls: OpenAI's `tool_calls`.
    """

    last_piece: TextPiece | None
    calls: list[dict[str, Any]]
    finish_reason: str


class TextStream:
    """Follows one answer; the same tokens always give the same pieces.

    Args:
        stops: the text ends before the first of them.
        tools: names of tools; if there are any, text is held back from the first `<tool_call>` on.
        end_ids: tokens that end an answer and are not part of its text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str],
        tools: Collection[str],
        end_ids: Collection[int],
        request_id: str,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._tools, self._end_ids, self._request_id = tools, end_ids, request_id
        self._calls = StopStrings(MARKERS if tools else ())
        self._decoded = 0  # characters
        self._emitted = 0  # of those
        self._pending: deque[tuple[int, Token]] = deque()  # tokens not emitted yet, and the character where each begins

    def add(self, token: Token) -> TextPiece | None:
        """The text that this token completes; None once a stop string has ended the text."""
        if self._stops.found:
            return None
        self._pending.append((self._decoded, token))
        text = self._detokenizer.add(token.id)
        self._decoded += len(text)
        return self._emit(self._calls.add(self._stops.add(text)))

    def finish(self, result: GenerateResult) -> Ending:
        """The remaining text or the tool calls, once the generation has ended."""
        self._stops.add(self._detokenizer.finish())  # an incomplete character at the end may complete a stop string
        rest = result.text[self._emitted :]
        reason = result.finish_reason
        if self._calls.found and reason == "stop" and not self._stops.found:
            calls = parse_calls(rest, self._tools, self._request_id)
            if calls is not None:
                return Ending(None, calls, "tool_calls")
        return Ending(self._emit(rest, last=True), [], reason)

    def _emit(self, text: str, last: bool = False) -> TextPiece | None:
        self._emitted += len(text)
        tokens: list[Token] = []
        if last and not self._stops.found:
            tokens = [token for _, token in self._pending if token.id not in self._end_ids]
            self._pending.clear()
        while self._pending and self._pending[0][0] < self._emitted:
            tokens.append(self._pending.popleft()[1])
        return TextPiece(text, tuple(tokens)) if text or tokens else None
