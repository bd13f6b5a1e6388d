"""What every route that generates does around its own reading and telling: admit, begin or join, tell or leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from contract.client_left import CLIENT_CLOSED_REQUEST, LEFT, ClosingStream, unless_left
from contract.http_body import received_header
from contract.idempotency import idempotency_key
from server.clients import Client, client_of
from server.idempotency import KeyedGenerations
from server.running import Leave, Running

if TYPE_CHECKING:
    from server.engines.protocol import Engine


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
    keyed: KeyedGenerations, client: Client, key: str | None, digest: Callable[[], bytes], begin: Callable[[], Running]
) -> tuple[Running, Leave]:
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
    running: Running,
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
        found = await unless_left(request, whole())
    finally:
        leave()
    if found is LEFT:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(found, headers=received_header(request))
