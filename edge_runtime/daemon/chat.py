"""One chat request: its answer from the server, as OpenAI's objects, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.http import openai_chat
from qwen3vl_edge.contract.http.openai_chat import DONE, event, head
from qwen3vl_edge.contract.http.stop_matcher import StopStrings
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import Upstream
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt


@dataclass
class Progress:
    """The answer so far, and its cost.

    Attributes:
        pieces: of the text, as sent to the client.
        tokens: generated so far.
        final: the server's last event; None before it, and where a stop string ended the answer.
        first_token_s: seconds from sending the request to its first token: network, queue and prefill.
        generate_s: seconds from sending the request to the end of the answer.
        sent_bytes: of all request bodies, retries included.
        by_hash: indices of the media that the last body referred to by hash.
        server: evidence about a server that is not this project's own.
        complete: the answer was received whole.
        failure: an error after the first piece was sent.
    """

    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    final: dict[str, Any] | None = None
    first_token_s: float | None = None
    generate_s: float = 0.0
    sent_bytes: int = 0
    by_hash: frozenset[int] = frozenset()
    server: dict[str, Any] | None = None
    complete: bool = False
    failure: ContractError | None = None

    @property
    def finish_reason(self) -> str:
        return "stop" if self.final is None else str(self.final["finish_reason"])


async def generate(
    upstream: Upstream,
    encoded: EncodedPrompt,
    request: ChatRequest,
    deadline_s: float,
    progress: Progress,
    *,
    keep: bool = False,
) -> AsyncGenerator[str, None]:
    """Pieces of the answer's text; `progress` is updated with each.

    Args:
        keep: the client may send the request again (Idempotency-Key), so closing this early does not cancel the
            generation on the server.

    Raises:
        ServerUnavailableError, RefusedError: as the upstream; names the chat's field.
    """

    def count(size: int, by_hash: Collection[int] = ()) -> None:
        progress.sent_bytes += size
        progress.by_hash = frozenset(by_hash)

    progress.server = upstream.evidence
    stops = StopStrings(request.stop_strings)
    sent = time.perf_counter()
    events = upstream.stream(encoded, request, deadline_s, count)
    try:
        async for step in events:
            if progress.first_token_s is None:
                progress.first_token_s = time.perf_counter() - sent
            progress.final = step.final
            progress.server = (step.final or {}).get("server", progress.server)
            progress.tokens += step.final is None
            piece = stops.add(step.text) if step.final is None else stops.finish()
            if piece:
                progress.pieces.append(piece)
                yield piece
            if stops.found:
                progress.final, progress.complete = None, True
                return
        progress.complete = progress.final is not None
    except ContractError as error:
        openai_chat.name_chat_field(error)
        raise
    finally:
        progress.generate_s = time.perf_counter() - sent
        await events.aclose()
        if progress.final is None and not keep:
            upstream.forget(encoded.request.request_id)


def completion(encoded: EncodedPrompt, progress: Progress) -> dict[str, Any]:
    """The whole answer as a `chat.completion`."""
    message = {"role": "assistant", "content": "".join(progress.pieces)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": progress.finish_reason}
    return {
        **_head(encoded, "chat.completion"),
        "choices": [choice],
        "usage": usage(encoded, progress),
        "qwen3vl_edge": evidence(encoded, progress),
    }


async def chunks(
    encoded: EncodedPrompt, request: ChatRequest, pieces: AsyncIterator[str], progress: Progress
) -> AsyncIterator[str]:
    """The answer as server-sent `chat.completion.chunk` events, `[DONE]` last."""
    start = {**_head(encoded, "chat.completion.chunk"), "system_fingerprint": None}

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**start, "choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""})
    async for piece in pieces:
        yield chunk({"content": piece})
    yield chunk({}, progress.finish_reason, qwen3vl_edge=evidence(encoded, progress))
    if request.wants_usage:
        yield event({**start, "choices": [], "usage": usage(encoded, progress)})
    yield DONE


def usage(encoded: EncodedPrompt, progress: Progress) -> dict[str, int]:
    """Token counts; visual tokens are a part of the prompt's."""
    final = progress.final or {}
    completion_tokens = int(final.get("usage", {}).get("completion_tokens", progress.tokens))
    return openai_chat.usage(len(encoded.request.input_ids), completion_tokens)


def evidence(encoded: EncodedPrompt, progress: Progress) -> dict[str, Any]:
    """How the answer was produced: grid and scale of each picture, penalties, seconds by stage, bytes sent."""
    media = [
        {
            "kind": item.kind,
            "grid": str(item.grid),
            **item.origin,
            "encode_s": round(seconds, 6),
            "sent": "hash" if index in progress.by_hash else "tensors",
        }
        for index, (item, seconds) in enumerate(zip(encoded.request.media, encoded.timings.encode, strict=True))
    ]
    seconds = {
        "preprocess": encoded.timings.preprocess,
        "encode": sum(encoded.timings.encode),
        "first_token": progress.first_token_s or 0.0,
        "generate": progress.generate_s,
    }
    rounded = {name: round(value, 6) for name, value in seconds.items()}
    server = {"server": progress.server} if progress.server else {}
    penalties = {"penalties": changes} if (changes := encoded.request.sampling.penalties) else {}
    return {"media": media, **penalties, "seconds": rounded, "sent_bytes": progress.sent_bytes, **server}


def _head(encoded: EncodedPrompt, kind: str) -> dict[str, Any]:
    return head(encoded.request.request_id, encoded.model, kind)
