"""An answer in OpenAI's objects, whole and as chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.http.errors import as_contract_error
from qwen3vl_edge.contract.http.openai_chat import DONE, event, head, usage
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.live_generation import LiveGeneration
from qwen3vl_edge.server.openai.logprobs import logprobs_of
from qwen3vl_edge.server.openai.parts import Medium
from qwen3vl_edge.server.openai.request import ChatRequest
from qwen3vl_edge.server.openai.text_stream import Ending, TextPiece, TextStream

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine, GenerateResult

KEEP_ALIVE_SECONDS = 15.0


@dataclass(frozen=True)
class Prepared:
    """A chat request that the engine has checked.

    Attributes:
        request: what is generated.
        evidence: of each medium: how it came, and whether it is known to be of this model.
    """

    chat: ChatRequest
    request: GenerateRequest
    evidence: tuple[dict[str, Any], ...]

    def telling(self, engine: Engine) -> TextStream:
        """A fresh one for a reader of the answer."""
        chat, end_ids = self.chat, engine.loaded.end_ids
        names = chat.tool_names
        return TextStream(engine.detokenizer(), chat.stop_strings, names, end_ids, self.request.request_id)


def evidence_of(media: list[Medium]) -> tuple[dict[str, Any], ...]:
    """What an answer says of its media."""
    return tuple(
        {"kind": item.media.kind, "grid": str(item.grid), "sent": item.source, "proven": item.proven} for item in media
    )


async def whole(prepared: Prepared, running: LiveGeneration, engine: Engine) -> dict[str, Any]:
    """The `chat.completion`, once the generation has ended.

    Raises:
        Exception: whatever the generation failed with.
    """
    telling = prepared.telling(engine)
    said: list[TextPiece | None] = []
    async for token in running.log.follow(KEEP_ALIVE_SECONDS):
        if token is not None:
            said.append(telling.add(token))
    result = running.result
    ending = telling.finish(result)
    pieces = [piece for piece in (*said, ending.said) if piece is not None]
    text = "".join(piece.text for piece in pieces)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if ending.calls:
        message |= {"content": text or None, "tool_calls": ending.calls}
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    logprobs = None if prepared.request.logprobs is None else logprobs_of(tokens, engine.loaded.tokenizer)
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": ending.finish_reason}
    return {
        **head(prepared.request.request_id, engine.loaded.name, "chat.completion"),
        "choices": [choice],
        "usage": _usage(result),
        "system_fingerprint": None,
        "qwen3vl_edge": _extension(prepared, result, engine),
    }


async def chunks(prepared: Prepared, running: LiveGeneration, engine: Engine) -> AsyncIterator[str]:
    """The answer as server-sent `chat.completion.chunk` events, `[DONE]` last; an error on the way is one event."""
    tell = _Chunks(prepared, engine)
    telling = prepared.telling(engine)
    yield tell.chunk({"role": "assistant", "content": "", "refusal": None})
    async for token in running.log.follow(KEEP_ALIVE_SECONDS):
        if token is None:
            yield ": waiting\n\n"
        elif (said := telling.add(token)) is not None:
            yield tell.piece(said)
    try:
        result = running.result
        ending = telling.finish(result)
    except Exception as error:
        yield event(as_contract_error(error, prepared.request.request_id).to_openai())
    else:
        for text in tell.end(ending, result):
            yield text
    yield DONE


class _Chunks:
    """Writes the events of one stream."""

    def __init__(self, prepared: Prepared, engine: Engine) -> None:
        self._prepared, self._engine = prepared, engine
        name = engine.loaded.name
        start = head(prepared.request.request_id, name, "chat.completion.chunk")
        self._start = {**start, "system_fingerprint": None}
        # OpenAI's own chunks name no usage but in the last one, where they were asked for it.
        self._no_usage = {"usage": None} if prepared.chat.wants_usage else {}

    def chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._start, "choices": [choice], **self._no_usage, **more})

    def piece(self, said: TextPiece) -> str:
        if self._prepared.request.logprobs is None:
            return self.chunk({"content": said.text})
        return self.chunk({"content": said.text}, logprobs=logprobs_of(said.tokens, self._engine.loaded.tokenizer))

    def end(self, ending: Ending, result: GenerateResult) -> list[str]:
        found = [] if ending.said is None else [self.piece(ending.said)]
        found += [self.chunk({"tool_calls": [{"index": index, **call}]}) for index, call in enumerate(ending.calls)]
        extension = _extension(self._prepared, result, self._engine)
        found.append(self.chunk({}, ending.finish_reason, qwen3vl_edge=extension))
        if self._prepared.chat.wants_usage:
            found.append(event({**self._start, "choices": [], "usage": _usage(result)}))
        return found


def _usage(result: GenerateResult) -> dict[str, Any]:
    counts = usage(result.prompt_tokens, len(result.generated_ids))
    return {**counts, "prompt_tokens_details": {"cached_tokens": result.reused_tokens}}


def _extension(prepared: Prepared, result: GenerateResult, engine: Engine) -> dict[str, Any]:
    """What OpenAI's objects have no place for: which model this is, and whether the embeddings are known to be its."""
    return {
        "model_hash": engine.loaded.shape.model_hash,
        "embeddings_proven": all(item["proven"] for item in prepared.evidence),
        "media": list(prepared.evidence),
        "visual_tokens": result.visual_tokens,
        "timings": {name: round(seconds, 6) for name, seconds in asdict(result.timings).items()},
    }
