"""The protocol of the servers that answer the daemon; one file for each kind of server implements it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from types import TracebackType
from typing import Any, Protocol

from qwen3vl_edge.edge_runtime.client.answers import Event
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt


class OnSent(Protocol):
    """Called for each body that was sent."""

    def __call__(self, size: int, by_hash: Collection[int] = ()) -> None:
        """`size` in bytes; `by_hash`: which of the request's media were sent by hash, without their tensors."""
        ...


class Upstream(Protocol):
    """An async context manager that answers encoded conversations."""

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The evidence about the server in every answer, None where its model is proven by its hash."""
        ...

    @property
    def let_in(self) -> bool:
        """False once the server has refused this device's token, until it accepts a request."""
        ...

    async def __aenter__(self) -> Upstream: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def ready(self) -> dict[str, Any] | None:
        """The server's own description, None while it cannot be reached or is not ready."""
        ...

    def check(self, chat: ChatRequest) -> None:
        """Called before anything is encoded.

        Raises:
            InputError: this kind of server cannot answer the request.
        """
        ...

    def stream(
        self, encoded: EncodedPrompt, chat: ChatRequest, deadline_s: float, on_sent: OnSent
    ) -> AsyncGenerator[Event, None]:
        """The answer as it is streamed; the last event has `final`, with `usage` and `finish_reason`, and `server` with
        further evidence, if there is any.

        Requests with the same `encoded.request.request_id` are one request that is retried; it is the Idempotency-Key,
        if the server supports one. The server may continue to generate when this is closed early: see `forget`.

        Args:
            chat: the conversation as the client sent it; its media are `encoded.request.media`, in order.
            deadline_s: seconds for everything, retries and answer.
            on_sent: called for each body that was sent.

        Raises:
            ServerUnavailableError: not reached, or the answer not complete, within the deadline.
            RefusedError: the server refused the request.
        """
        ...

    def forget(self, request_id: str) -> None:
        """Drop the answer to this request on the server. Returns at once, within the event loop; raises nothing."""
        ...
