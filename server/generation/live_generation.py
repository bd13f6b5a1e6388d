"""A generation under way as its readers see it: a log of tokens that any number follow from the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.stop_strings import submit_until

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine, GenerateResult, Token

Leave = Callable[[], None]


class TokenLog:
    """Carries tokens from the engine's thread into the event loop, and keeps them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens: list[Token] = []
        self._changed = asyncio.Event()
        self.ended = False

    def put(self, token: Token) -> None:
        """Called in the engine's thread."""
        self._call(self._tokens.append, token)

    def end(self, _: Future[GenerateResult]) -> None:
        """Called once the generation has ended, in whatever thread ended it."""
        self._call(setattr, self, "ended", True)

    async def follow(self, keep_alive_s: float) -> AsyncIterator[Token | None]:
        """Every token from the first; None whenever `keep_alive_s` seconds bring nothing."""
        position = 0
        while True:
            while position < len(self._tokens):
                yield self._tokens[position]
                position += 1
            if self.ended:
                return
            try:
                await asyncio.wait_for(self._changed.wait(), keep_alive_s)
            except asyncio.TimeoutError:
                yield None

    def _call(self, change: Callable[..., object], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server stops, and nobody reads any more
            self._loop.call_soon_threadsafe(self._change, change, values)

    def _change(self, change: Callable[..., object], values: tuple[object, ...]) -> None:
        change(*values)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@dataclass(frozen=True)
class LiveGeneration:
    """One generation: its result to be, its tokens so far, and how to end it.

    It does not hold the request, whose tensors are many times larger than the answer.
    """

    future: Future[GenerateResult]
    log: TokenLog
    cancel: Callable[[], None]

    @property
    def result(self) -> GenerateResult:
        """The answer of an ended generation.

        Raises:
            ServerUnavailableError: it was cancelled, so what there is of it is no answer.
            Exception: it failed with this.
        """
        found = self.future.result(timeout=0)
        if found.finish_reason == "cancelled":
            raise ServerUnavailableError("the generation was cancelled", remedy="Send the request again.")
        return found


def start(
    engine: Engine,
    request: GenerateRequest,
    record: Callable[[Future[GenerateResult]], None],
    client: str = "",
    stops: Sequence[str] = (),
) -> LiveGeneration:
    """Queue a request that the engine has prepared.

    Args:
        record: called with the future once it has ended.
        client: whose turn it uses.
        stops: the answer ends before the first of these.

    Raises:
        QueueFullError, ServerUnavailableError: as the engine.
    """
    log = TokenLog()
    if stops:
        generation = submit_until(engine, request, log.put, client, stops)
    else:
        generation = engine.submit(request, log.put, client)
    generation.future.add_done_callback(record)
    generation.future.add_done_callback(log.end)
    return LiveGeneration(generation.future, log, generation.cancel)
