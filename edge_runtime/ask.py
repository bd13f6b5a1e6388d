"""One question about pictures and clips: encoded here, answered by the server, its text handed on as it streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.compression import compress
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.client.answers import Event
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.edge_runtime.client.server_credentials import NO_CREDENTIALS, ServerAccess
from qwen3vl_edge.edge_runtime.client.sync_client import Client
from qwen3vl_edge.edge_runtime.edge import Edge, EncodedPrompt
from qwen3vl_edge.edge_runtime.inputs.messages import Message


@dataclass(frozen=True)
class Answer:
    """An answer, its timings and its size.

    Attributes:
        text: the whole answer.
        generated_ids: its token ids.
        seconds: stage name to seconds: preprocess, encode, first_token (request sent to first token
            received: network, queue and prefill), total, and the server's own as `server.*`.
        sent_bytes: bytes of the request body.
        media: one dict per picture: kind, grid, native grid, scale, distortion, encoder seconds.
        usage: token counts as the server reports them.
    """

    text: str
    generated_ids: tuple[int, ...]
    finish_reason: str
    seconds: dict[str, float]
    sent_bytes: int
    media: tuple[dict[str, Any], ...]
    usage: dict[str, int]


def build_messages(
    question: str, images: Sequence[str], videos: Sequence[str], options: Mapping[str, Any] | None = None
) -> list[Message]:
    """One user turn in Qwen's format: the images, then the clips, then the question.

    Args:
        options: of each picture and clip, such as `max_pixels`.
    """
    options = options or {}
    content: list[dict[str, Any]] = [{"type": "image", "image": image, **options} for image in images]
    content += [{"type": "video", "video": video, **options} for video in videos]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def ask(
    edge: Edge,
    server: str,
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] = lambda text: None,
    access: ServerAccess = NO_CREDENTIALS,
) -> Answer:
    """Encode a conversation, send it, and collect the streamed answer.

    Args:
        on_text: called with each new piece of text.
        access: the token and certificates that the server requires.

    Raises:
        ContractError: any input, bucket or server error, each with its remedy.
    """
    request = _StreamedRequest(edge.encode(messages, sampling, stream=True), on_text, edge.options.wire_zstd)
    with Client(server, access) as client:
        for event in client.stream(request.body):
            request.add(event)
    return request.answer()


async def ask_async(
    edge: Edge,
    server: str | AsyncClient,
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] = lambda text: None,
    *,
    deadline_s: float = 600.0,
    access: ServerAccess = NO_CREDENTIALS,
) -> Answer:
    """The same without blocking the event loop; an edge encodes in one thread at a time, so await them in turn.

    Args:
        server: URL, or an open client where many requests share one pool of connections; both retry as
            `AsyncClient` does.
        deadline_s: seconds for the network part.
        access: as `ask`, where `server` is a URL; an open client has its own.

    Raises:
        ContractError: as `ask`.
    """
    if isinstance(server, str):
        async with AsyncClient(server, access) as client:
            return await ask_async(edge, client, messages, sampling, on_text, deadline_s=deadline_s)
    encoded = await encode_async(edge, messages, sampling, stream=True)
    request = await asyncio.to_thread(_StreamedRequest, encoded, on_text, edge.options.wire_zstd)
    events = server.stream(request.body, deadline_s, request.request_id)
    try:
        async with aclosing(events):
            async for event in events:
                request.add(event)
    except BaseException:
        server.forget(request.request_id)  # no retry will follow
        raise
    return request.answer()


async def encode_async(
    edge: Edge, messages: Sequence[Message], sampling: Sampling | None = None, *, stream: bool = False
) -> EncodedPrompt:
    """`Edge.encode` in a thread.

    Raises:
        InputError, BucketError: as `Edge.encode`.
    """
    return await asyncio.to_thread(edge.encode, messages, sampling, stream=stream)


class _StreamedRequest:
    """A request and the part of its answer received so far."""

    def __init__(self, encoded: EncodedPrompt, on_text: Callable[[str], None], zstd: bool) -> None:
        body = encode_request(encoded.request)
        self.body = compress(body) if zstd else body
        self.request_id = encoded.request.request_id
        self._encoded, self._on_text = encoded, on_text
        self._sent = time.perf_counter()
        self._first: float | None = None
        self._final: dict[str, Any] = {}

    def add(self, event: Event) -> None:
        self._first = self._first if self._first is not None else time.perf_counter()
        if event.text:
            self._on_text(event.text)
        self._final = event.final or self._final

    def answer(self) -> Answer:
        ended, timings, final = time.perf_counter(), self._encoded.timings, self._final
        seconds = {
            "preprocess": timings.preprocess,
            "encode": sum(timings.encode),
            "first_token": (self._first or ended) - self._sent,
            "total": timings.preprocess + sum(timings.encode) + ended - self._sent,
        }
        seconds |= {f"server.{name}": value for name, value in final.get("timings", {}).items()}
        return Answer(
            text=final.get("text", ""),
            generated_ids=tuple(final.get("generated_ids", ())),
            finish_reason=final.get("finish_reason", ""),
            seconds=seconds,
            sent_bytes=self.body.size,
            media=tuple(_describe(self._encoded)),
            usage=final.get("usage", {}),
        )


def _describe(encoded: EncodedPrompt) -> list[dict[str, Any]]:
    return [
        {"kind": item.kind, "grid": str(item.grid), "encode_s": seconds, **item.origin}
        for item, seconds in zip(encoded.request.media, encoded.timings.encode, strict=True)
    ]
