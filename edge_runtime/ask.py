"""One question about pictures and clips: encoded here, answered by the server, printed as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contract.request import Sampling
from contract.wire import body_size, encode_request
from edge_runtime.client import stream
from edge_runtime.edge import Edge, EncodedPrompt
from edge_runtime.media import Message


@dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    Attributes:
        text: the whole answer.
        generated_ids: its token ids.
        seconds: stage name to seconds: preprocess, encode, first_token (request sent to first token
            received, so network + queue + prefill), total, and the server's own as `server.*`.
        sent_bytes: bytes of the request body.
        media: one dict per picture: kind, grid, native grid, scale, distortion, engine seconds.
        usage: token counts as the server reports them.
    """

    text: str
    generated_ids: tuple[int, ...]
    finish_reason: str
    seconds: dict[str, float]
    sent_bytes: int
    media: tuple[dict[str, Any], ...]
    usage: dict[str, int]


def build_messages(question: str, images: Sequence[str], videos: Sequence[str]) -> list[Message]:
    """One user turn in Qwen's format: the images, then the clips, then the question."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content += [{"type": "video", "video": video} for video in videos]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def ask(
    edge: Edge,
    server: str,
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Encode a conversation, send it, and collect the streamed answer.

    Args:
        on_text: called with each new piece of text.

    Raises:
        ContractError: any input, bucket or server error, each with its remedy.
    """
    started = time.perf_counter()
    encoded = edge.encode(messages, sampling, stream=True)
    body = encode_request(encoded.request)
    sent = time.perf_counter()
    first: float | None = None
    final: dict[str, Any] = {}
    for event in stream(server, body):
        first = first if first is not None else time.perf_counter()
        if event.text:
            on_text(event.text)
        final = event.final or final
    ended = time.perf_counter()
    seconds = {
        "preprocess": encoded.timings.preprocess,
        "encode": sum(encoded.timings.encode),
        "first_token": (first or ended) - sent,
        "total": ended - started,
    }
    seconds |= {f"server.{name}": value for name, value in final.get("timings", {}).items()}
    return Answer(
        text=final.get("text", ""),
        generated_ids=tuple(final.get("generated_ids", ())),
        finish_reason=final.get("finish_reason", ""),
        seconds=seconds,
        sent_bytes=body_size(body),
        media=tuple(_describe(encoded)),
        usage=final.get("usage", {}),
    )


def _describe(encoded: EncodedPrompt) -> list[dict[str, Any]]:
    return [
        {"kind": item.kind, "grid": str(item.grid), "encode_s": seconds, **item.origin}
        for item, seconds in zip(encoded.request.media, encoded.timings.encode, strict=True)
    ]
