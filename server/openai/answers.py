"""An answer as OpenAI's `chat.completion`, and as the `chat.completion.chunk` events of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.http.errors import as_contract_error
from qwen3vl_edge.contract.http.openai_chat import DONE, event, head, usage
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.live_generation import LiveGeneration
from qwen3vl_edge.server.generation.streaming import KEEP_ALIVE
from qwen3vl_edge.server.openai.logprobs import logprobs_of
from qwen3vl_edge.server.openai.parts import Medium
from qwen3vl_edge.server.openai.request import ChatRequest
from qwen3vl_edge.server.openai.text_stream import Ending, TextPiece, TextStream

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine, GenerateResult


@dataclass(frozen=True)
class PreparedChat:
    """A chat request that the engine has validated.

    Attributes:
        request: the request for the engine.
        provenance: for each medium: its source, and whether it is known to be from this model.
    """

    chat: ChatRequest
    request: GenerateRequest
    provenance: tuple[dict[str, Any], ...]

    def text_stream(self, engine: Engine) -> TextStream:
        """A new text stream for one reader of the answer."""
        chat, end_ids = self.chat, engine.loaded.end_ids
        names = chat.tool_names
        return TextStream(engine.detokenizer(), chat.stop_strings, names, end_ids, self.request.request_id)


def provenance_of(media: list[Medium]) -> tuple[dict[str, Any], ...]:
    """The `media` of an answer's `qwen3vl_edge` object."""
    return tuple(
        {
            "kind": item.media.kind,
            "grid": str(item.grid),
            "sent": item.source,
            "proven": item.proven,
            **item.decoding,
        }
        for item in media
    )


async def chat_completion(prepared: PreparedChat, generation: LiveGeneration, engine: Engine) -> dict[str, Any]:
    """Wait for the generation to end and return the `chat.completion`.

    Raises:
        Exception: the error of a failed generation.
    """
    stream = prepared.text_stream(engine)
    pieces: list[TextPiece] = []
    async for token in generation.log.follow():
        if token is not None and (piece := stream.add(token)) is not None:
            pieces.append(piece)
    result = generation.result
    ending = stream.finish(result)
    if ending.last_piece is not None:
        pieces.append(ending.last_piece)
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


async def chat_completion_chunks(
    prepared: PreparedChat, generation: LiveGeneration, engine: Engine
) -> AsyncIterator[str]:
    """The answer as server-sent `chat.completion.chunk` events, `[DONE]` last; an error is one event."""
    write = _ChunkWriter(prepared, engine)
    stream = prepared.text_stream(engine)
    yield write.chunk({"role": "assistant", "content": "", "refusal": None})
    async for token in generation.log.follow():
        if token is None:
            yield KEEP_ALIVE
        elif (piece := stream.add(token)) is not None:
            yield write.piece(piece)
    try:
        result = generation.result
        ending = stream.finish(result)
    except Exception as error:
        yield event(as_contract_error(error, prepared.request.request_id).to_openai())
    else:
        for text in write.end(ending, result):
            yield text
    yield DONE


class _ChunkWriter:
    """Writes the events of one stream."""

    def __init__(self, prepared: PreparedChat, engine: Engine) -> None:
        self._prepared, self._engine = prepared, engine
        name = engine.loaded.name
        self._head = {**head(prepared.request.request_id, name, "chat.completion.chunk"), "system_fingerprint": None}
        # With `include_usage`, OpenAI writes a null usage into every chunk but the last.
        self._no_usage = {"usage": None} if prepared.chat.wants_usage else {}

    def chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._head, "choices": [choice], **self._no_usage, **more})

    def piece(self, piece: TextPiece) -> str:
        if self._prepared.request.logprobs is None:
            return self.chunk({"content": piece.text})
        return self.chunk({"content": piece.text}, logprobs=logprobs_of(piece.tokens, self._engine.loaded.tokenizer))

    def end(self, ending: Ending, result: GenerateResult) -> Iterator[str]:
        if ending.last_piece is not None:
            yield self.piece(ending.last_piece)
        for index, call in enumerate(ending.calls):
            yield self.chunk({"tool_calls": [{"index": index, **call}]})
        extension = _extension(self._prepared, result, self._engine)
        yield self.chunk({}, ending.finish_reason, qwen3vl_edge=extension)
        if self._prepared.chat.wants_usage:
            yield event({**self._head, "choices": [], "usage": _usage(result)})


def _usage(result: GenerateResult) -> dict[str, Any]:
    counts = usage(result.prompt_tokens, len(result.generated_ids))
    return {**counts, "prompt_tokens_details": {"cached_tokens": result.reused_tokens}}


def _extension(prepared: PreparedChat, result: GenerateResult, engine: Engine) -> dict[str, Any]:
    """Fields that OpenAI's objects do not have: the model's hash, where the embeddings are from, penalties, timings."""
    penalties = prepared.request.sampling.penalties
    return {
        "model_hash": engine.loaded.shape.model_hash,
        "embeddings_proven": all(item["proven"] for item in prepared.provenance),
        "media": list(prepared.provenance),
        "visual_tokens": result.visual_tokens,
        **({"penalties": penalties} if penalties else {}),
        "timings": {name: round(seconds, 6) for name, seconds in asdict(result.timings).items()},
    }
