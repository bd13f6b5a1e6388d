"""An answer's tokens as the text that is told of it, with the tokens that belong to each piece."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.http.stop_strings import StopStrings
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
    """What is left to tell at the end.

    Attributes:
        said: the last piece of text, None where there is none.
        calls: OpenAI's `tool_calls`.
    """

    said: TextPiece | None
    calls: list[dict[str, Any]]
    finish_reason: str


class TextStream:
    """Follows one answer; the same tokens are always told the same way.

    Args:
        stops: the text ends before the first of them.
        tools: names of tools; where there are any, text is held back from the first `<tool_call>` on.
        end_ids: tokens that end an answer and are no part of it.
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
        self._read = 0  # characters of the answer so far
        self._shown = 0  # of those, told
        self._waiting: list[tuple[int, Token]] = []  # where each token begins that was not told yet

    def add(self, token: Token) -> TextPiece | None:
        """What can be told after this token; nothing more once a stop string was found."""
        if self._stops.found:
            return None
        self._waiting.append((self._read, token))
        text = self._detokenizer.add(token.id)
        self._read += len(text)
        return self._say(self._calls.add(self._stops.add(text)))

    def finish(self, result: GenerateResult) -> Ending:
        """What is left once the generation has ended."""
        self._stops.add(self._detokenizer.finish())  # the end may leave half a character, and complete a stop string
        rest = result.text[self._shown :]
        reason = result.finish_reason
        if self._calls.found and reason == "stop" and not self._stops.found:
            calls = parse_calls(rest, self._tools, self._request_id)
            if calls is not None:
                return Ending(None, calls, "tool_calls")
        return Ending(self._say(rest, last=True), [], reason)

    def _say(self, text: str, last: bool = False) -> TextPiece | None:
        self._shown += len(text)
        if last and not self._stops.found:
            tokens = [token for _, token in self._waiting if token.id not in self._end_ids]
        else:
            tokens = [token for begin, token in self._waiting if begin < self._shown]
        self._waiting = self._waiting[len(tokens) :]
        return TextPiece(text, tuple(tokens)) if text or tokens else None
