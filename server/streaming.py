"""A generation as server-sent events.

    data: {"token_id": 88, "text": "An"}        one per token; `text` is what it adds, empty inside a character
    data: {"token_id": null, "text": "…"}       only if the end left half a character
    data: {"request_id": …, "generated_ids": […], "text": …, "finish_reason": …, "usage": …, "timings": …}
    data: [DONE]

The `text` of the steps joins to the `text` of the last event, which is the whole answer as it comes
without streaming. An error on the way is one event `{"error": {…}}`, then `[DONE]`. Lines that start
with a colon keep the connection open while a request waits.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from contract.http_errors import as_contract_error
from contract.request import GenerateRequest
from server.answers import answer

if TYPE_CHECKING:
    from server.engine import Engine, GenerateResult

KEEP_ALIVE_SECONDS = 15.0
DONE = "data: [DONE]\n\n"


class TokenFeed:
    """Carries tokens from the engine's thread into the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[int | None] = asyncio.Queue()

    def put(self, token_id: int) -> None:
        """Called in the engine's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, token_id)

    def end(self, _: Future[GenerateResult]) -> None:
        """Called once the generation has ended, in whatever thread ended it."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, None)

    async def get(self, timeout: float) -> int | None:
        """The next token, None after the last.

        Raises:
            asyncio.TimeoutError: none came within `timeout` seconds.
        """
        return await asyncio.wait_for(self._queue.get(), timeout)


class EventStream(StreamingResponse):
    """A streamed answer that cancels its generation when the client leaves, however far it got."""

    def __init__(self, events: AsyncIterator[str], cancel: threading.Event) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel.set()


async def events(
    engine: Engine, request: GenerateRequest, future: Future[GenerateResult], feed: TokenFeed
) -> AsyncIterator[str]:
    """The lines of a stream, as the module's text shows them."""
    detokenizer = engine.detokenizer()
    while True:
        try:
            token_id = await feed.get(KEEP_ALIVE_SECONDS)
        except asyncio.TimeoutError:
            yield ": waiting\n\n"
            continue
        if token_id is None:
            break
        yield _event({"token_id": token_id, "text": detokenizer.add(token_id)})
    try:
        result = future.result(timeout=0)
    except Exception as error:
        yield _event(as_contract_error(error, request.request_id).to_openai())
    else:
        if rest := detokenizer.finish():
            yield _event({"token_id": None, "text": rest})
        yield _event(answer(request, result, engine.loaded))
    yield DONE


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
