"""The server that answers, as the daemon sees it: one protocol, one file per kind of server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Protocol

from contract.wire import body_size, encode_request
from edge_runtime.async_client import AsyncClient
from edge_runtime.client import Event
from edge_runtime.daemon.openai_request import ChatRequest
from edge_runtime.edge import EncodedPrompt


class Upstream(Protocol):
    """An async context manager that answers encoded conversations."""

    @property
    def evidence(self) -> dict[str, Any] | None:
        """What every answer is to say of the server, None where its model is proven by its hash."""
        ...

    async def __aenter__(self) -> Upstream: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def ready(self) -> dict[str, Any] | None:
        """What the server says of itself, None while it cannot be reached or is not ready."""
        ...

    def check(self, chat: ChatRequest) -> None:
        """Called before anything is encoded.

        Raises:
            InputError: this kind of server cannot answer the request.
        """
        ...

    def stream(
        self, encoded: EncodedPrompt, chat: ChatRequest, deadline_s: float, on_sent: Callable[[int], None]
    ) -> AsyncGenerator[Event, None]:
        """The answer as it comes; the last event has `final`, with `usage` and `finish_reason`, and `server` where the
        evidence is to say more of it.

        Args:
            chat: the conversation as the client sent it; its media are `encoded.request.media`, in order.
            deadline_s: seconds for everything, retries and answer.
            on_sent: called with the bytes of each body that went out.

        Raises:
            ServerUnavailableError: not reached, or the answer not complete, within the deadline.
            RefusedError: the server refused the request.
        """
        ...


class Qwen3VLServer:
    """This project's own server: token ids and embeddings in one binary body."""

    evidence: dict[str, Any] | None = None
    """Nothing: it refuses embeddings of another model than its own."""

    def __init__(self, url: str) -> None:
        self._client = AsyncClient(url)

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
        pass  # whatever can be encoded can be sent

    async def stream(
        self, encoded: EncodedPrompt, chat: ChatRequest, deadline_s: float, on_sent: Callable[[int], None]
    ) -> AsyncGenerator[Event, None]:
        body = encode_request(encoded.request)
        on_sent(body_size(body))
        events = self._client.stream(body, deadline_s)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()  # the server stops with it
