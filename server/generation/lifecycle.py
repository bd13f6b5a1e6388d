"""What every route that generates does around its own reading and telling: admit, begin or join, tell or leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from qwen3vl_edge.contract.http.body import received_header
from qwen3vl_edge.contract.http.disconnect import (
    CLIENT_CLOSED_REQUEST,
    DISCONNECTED,
    ClosingStream,
    cancel_on_disconnect,
)
from qwen3vl_edge.contract.http.idempotency_key import idempotency_key
from qwen3vl_edge.server.generation.keyed import KeyedGenerations
from qwen3vl_edge.server.generation.live_generation import Leave, LiveGeneration
from qwen3vl_edge.server.http.identity import Client, client_of

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine


def admit(request: Request, engine: Engine, keyed: KeyedGenerations) -> tuple[Client, str | None]:
    """Who asks, and the request's Idempotency-Key; before a body is read that would wait for nothing.

    Raises:
        QueueFullError, ServerUnavailableError: as `Engine.check_room`; not where the key is known already.
        HttpError: the key is malformed.
    """
    client = client_of(request)
    key = idempotency_key(request.headers)
    if key is None or not keyed.knows(key, client.name):
        engine.check_room(client.turn)
    return client, key


async def begin_or_join(
    keyed: KeyedGenerations,
    client: Client,
    key: str | None,
    digest: Callable[[], bytes],
    begin: Callable[[], LiveGeneration],
) -> tuple[LiveGeneration, Leave]:
    """The generation, and what to call when its reader goes.

    Args:
        digest: of what decides the answer; called in a thread, and only where there is a key.

    Raises:
        KeyReusedError: the key was sent with another request.
        ContractError: as `begin`.
    """
    if key is None:
        running = begin()
        return running, running.cancel
    return keyed.follow(key, await run_in_threadpool(digest), begin, client.name)


async def tell(
    request: Request,
    running: LiveGeneration,
    leave: Leave,
    events: AsyncIterator[str] | None,
    whole: Callable[[], Awaitable[dict[str, Any]]],
) -> Response:
    """The answer as events, or as one object where there are none; a reader that goes is noticed either way."""
    request.state.running = running  # for the audit log
    if events is not None:

        async def end() -> None:
            leave()

        return ClosingStream(events, end, headers=received_header(request))
    try:
        found = await cancel_on_disconnect(request, whole())
    finally:
        leave()
    if found is DISCONNECTED:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(found, headers=received_header(request))
