"""Clients that go before their answer is there: what was under way for them ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import Enum
from typing import Final, Literal, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody reads it but the metrics
T = TypeVar("T")


class Disconnected(Enum):
    """What stands for an answer where the client has gone."""

    DISCONNECTED = "left"


DISCONNECTED: Final = Disconnected.DISCONNECTED


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T | Literal[Disconnected.DISCONNECTED]:
    """The result of `work`, or DISCONNECTED, and the work cancelled, once the client has closed the connection."""
    answer, left = asyncio.ensure_future(work), asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else DISCONNECTED
    finally:
        answer.cancel()
        left.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ClosingStream(StreamingResponse):
    """Events of which `end` is told once they are over: sent, failed, or left by the client, even before the first."""

    def __init__(
        self,
        events: AsyncIterator[str],
        end: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        unbuffered = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers={**unbuffered, **(headers or {})})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._end()
