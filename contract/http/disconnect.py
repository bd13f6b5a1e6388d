"""Cancel the work for clients that disconnect before their answer is complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import Enum
from typing import Final, Literal, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

CLIENT_CLOSED_REQUEST = 499  # nginx's status; appears only in metrics
T = TypeVar("T")


class Disconnected(Enum):
    """Returned in place of a result when the client has disconnected."""

    DISCONNECTED = "left"


DISCONNECTED: Final = Disconnected.DISCONNECTED


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T | Literal[Disconnected.DISCONNECTED]:
    """The result of `work`; if the client disconnects first, cancel `work` and return DISCONNECTED."""
    answer, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else DISCONNECTED
    finally:
        answer.cancel()
        disconnect.cancel()
        await asyncio.gather(answer, disconnect, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ClosingStream(StreamingResponse):
    """Server-sent events; `end` is awaited after the last event, a failure or a disconnect, even before the first
    event."""

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
