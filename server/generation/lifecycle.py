"""The lifecycle of a generation in every route: admit, start or join by Idempotency-Key, respond or detach."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
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
from qwen3vl_edge.contract.http.ledger import Account
from qwen3vl_edge.server.generation.keyed import KeyedGenerations
from qwen3vl_edge.server.generation.live_generation import Detach, LiveGeneration
from qwen3vl_edge.server.http.identity import Client, client_of
from qwen3vl_edge.server.state import ServerState

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine


@dataclass(frozen=True)
class Admission:
    """A request whose body may be read.

    Attributes:
        key: its Idempotency-Key, or None.
        account: what it holds; open until the block that uses it ends, and its generation with it.
    """

    engine: Engine
    client: Client
    key: str | None
    account: Account


def admit(request: Request, state: ServerState) -> Admission:
    """Check that the queue has room, before reading a body that would be rejected.

    Raises:
        QueueFullError, ServerUnavailableError: as `Engine.check_room`; not for a key that is already known.
        HttpError: the key is malformed.
    """
    engine, client = state.readiness.engine, client_of(request)
    key = idempotency_key(request.headers)
    if key is None or not state.keyed.contains(key, client.name):
        engine.check_room(client.turn)
    return Admission(engine, client, key, state.ledger.open(client.turn))


async def start_or_join(
    keyed: KeyedGenerations,
    admitted: Admission,
    digest: Callable[[], bytes],
    start: Callable[[], LiveGeneration],
) -> tuple[LiveGeneration, Detach]:
    """Start or join a generation; returns it and the function to call when its reader disconnects or is done.

    One that starts keeps what the request holds until it ends, whether or not the reader stays.

    Args:
        digest: returns the digest of what determines the answer; called in a thread, and only if there is a key.

    Raises:
        KeyReusedError: the key was sent with another request.
        ContractError: as `start`.
    """

    def begin() -> LiveGeneration:
        generation = start()
        generation.future.add_done_callback(admitted.account.hold())
        return generation

    if admitted.key is None:
        generation = begin()
        return generation, generation.cancel
    return keyed.attach(admitted.key, await run_in_threadpool(digest), begin, admitted.client.name)


async def respond(
    request: Request,
    generation: LiveGeneration,
    detach: Detach,
    events: AsyncIterator[str] | None,
    complete: Callable[[], Awaitable[dict[str, Any]]],
) -> Response:
    """The answer as server-sent events, or as one object if `events` is None; a disconnect detaches the reader."""
    request.state.running = generation  # for the audit log
    if events is not None:

        async def close() -> None:
            detach()

        return ClosingStream(events, close, headers=received_header(request))
    try:
        answer = await cancel_on_disconnect(request, complete())
    finally:
        detach()
    if answer is DISCONNECTED:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(answer, headers=received_header(request))
