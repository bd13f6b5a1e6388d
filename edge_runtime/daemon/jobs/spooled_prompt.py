"""An encoded conversation to disk and back: the wire's body, and the other fields that the answer needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import Limits
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.edge import EdgeTimings, EncodedPrompt

# No limits here: the server that it is sent to checks its own.
_ANY = Limits(max_body_bytes=2**40, max_media=2**20)


@dataclass(frozen=True)
class SpooledPrompt:
    """The request to send and the conversation to answer; `encoded.media`, the pixels, is empty."""

    chat: ChatRequest
    encoded: EncodedPrompt


def to_disk(chat: ChatRequest, encoded: EncodedPrompt) -> tuple[dict[str, Any], bytes]:
    """JSON and body. The JSON has the conversation's text and no media; the body is never compressed."""
    stored = chat.model_copy(update={"messages": [message.without_media() for message in chat.messages]})
    timings = {"preprocess": encoded.timings.preprocess, "encode": list(encoded.timings.encode)}
    document = {"model": encoded.model, "chat": stored.model_dump(mode="json", exclude_unset=True), "timings": timings}
    return document, bytes(encode_request(encoded.request))


def from_disk(document: dict[str, Any], body: bytes, bases: Bases = NO_BASES) -> SpooledPrompt:
    """What `to_disk` stored. The upstream encodes it anew, and so names its content type and compresses it.

    Raises:
        WireError: the body is of another release.
        ModelMismatchError: its embeddings are in a basis that the bundle no longer has.
    """
    timings = EdgeTimings(document["timings"]["preprocess"], tuple(document["timings"]["encode"]))
    encoded = EncodedPrompt(document["model"], decode_request(body, _ANY, bases=bases, keep_packed=True), (), timings)
    return SpooledPrompt(ChatRequest.model_validate(document["chat"]), encoded)
