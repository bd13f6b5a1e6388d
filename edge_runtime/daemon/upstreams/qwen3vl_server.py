"""This project's own server: token ids and embeddings in one binary body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.compression import compress
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import Event, RefusedError
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
from qwen3vl_edge.edge_runtime.client.server_credentials import NO_CREDENTIALS, ServerAccess
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import OnSent
from qwen3vl_edge.edge_runtime.daemon.upstreams.sent_hashes import SentHashes
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt


class Qwen3VLServer:
    """An `Upstream` of this project.

    Embeddings that were sent before are sent by hash. If the server no longer stores them, or was replaced by a
    release that stores none, they are sent in full at once.
    """

    evidence: dict[str, Any] | None = None
    """None: the server refuses embeddings of another model than its own."""

    def __init__(
        self,
        url: str,
        send_by_hash: bool = True,
        access: ServerAccess = NO_CREDENTIALS,
        zstd: bool = False,
        bandwidth: BandwidthEstimate | None = None,
    ) -> None:
        self._client = AsyncClient(url, access, bandwidth=bandwidth)
        self._zstd = zstd
        self._sent = SentHashes() if send_by_hash else None
        self._holds: bool | None = None  # unknown

    @property
    def let_in(self) -> bool:
        return self._client.let_in

    async def __aenter__(self) -> Qwen3VLServer:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, value, trace)

    async def ready(self) -> dict[str, Any] | None:
        return await self._client.ready()

    def check(self, chat: ChatRequest) -> None:
        pass  # it answers every request that can be encoded

    async def stream(
        self, encoded: EncodedPrompt, chat: ChatRequest, deadline_s: float, on_sent: OnSent
    ) -> AsyncGenerator[Event, None]:
        ends = asyncio.get_running_loop().time() + deadline_s
        request, sent = encoded.request, self._sent
        if sent is not None and request.media and await self._server_holds():
            request = await asyncio.to_thread(_with_hashes, request)
        names = [item.hash for item in request.media if item.hash is not None]
        named = sent.known(names) if sent is not None else set()

        def body() -> WireBody:
            plain = encode_request(request, named)
            wire = compress(plain) if self._zstd else plain
            on_sent(wire.size, [index for index, item in enumerate(request.media) if item.hash in named])
            return wire

        def instead(error: RefusedError) -> WireBody | None:
            """With the tensors that the server does not store; it may not be the one that began the answer."""
            nonlocal named
            if sent is None or not named or not _may_hold_no_longer(error):
                return None
            self._holds = None
            gone = named & set(error.missing) or named
            sent.forget(gone)
            named = named - gone
            return body()

        first = await asyncio.to_thread(body)  # compressing takes milliseconds a picture, the event loop's otherwise
        seconds_left = ends - asyncio.get_running_loop().time()
        async with aclosing(self._client.stream(first, seconds_left, request.request_id, instead)) as events:
            begun = False
            async for event in events:
                if not begun and sent is not None:
                    sent.add(names)  # it checked and stored them before it began to answer
                begun = True
                yield event

    async def _server_holds(self) -> bool:
        """`holds_embeddings` of `/readyz`; looked up once, and again after a contradicting answer."""
        if self._holds is None and (ready := await self._client.ready()) is not None:
            self._holds = ready.get("holds_embeddings") is True
        return bool(self._holds)

    def forget(self, request_id: str) -> None:
        self._client.forget(request_id)


def _with_hashes(request: GenerateRequest) -> GenerateRequest:
    """The request, each medium with its hash; some 2 ms for 3 MB where the CPU has SHA instructions."""
    model_hash = request.model_hash or ""
    return replace(request, media=tuple(replace(item, hash=embedding_hash(item, model_hash)) for item in request.media))


def _may_hold_no_longer(error: RefusedError) -> bool:
    """Not stored, or not supported by an older release that replaced this one."""
    return error.code == "embeddings_not_held" or error.field == "version"
