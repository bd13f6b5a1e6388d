"""An in-flight generation: a log of tokens that any number of readers follow from the start, and the result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.stop_strings import submit_with_stop_strings

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine, GenerateResult, Token

KEEP_ALIVE_SECONDS = 15.0  # below the idle timeouts of common proxies
Detach = Callable[[], None]


class TokenLog:
    """The tokens so far, passed from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens: list[Token] = []
        self._changed = asyncio.Event()
        self.ended = False

    @property
    def likely_tokens(self) -> int:
        """How many of the likeliest tokens it holds, of all positions."""
        return sum(len(token.top) for token in self._tokens)

    def put(self, token: Token) -> None:
        """Called in the engine's thread."""
        self._call(self._tokens.append, token)

    def end(self, _: Future[GenerateResult]) -> None:
        """Called once the generation has ended, in the thread that ended it."""
        self._call(setattr, self, "ended", True)

    async def follow(self, keep_alive_s: float = KEEP_ALIVE_SECONDS) -> AsyncIterator[Token | None]:
        """Every token from the first; None whenever `keep_alive_s` seconds pass without one."""
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

    async def wait(self) -> None:
        """Until the generation has ended."""
        while not self.ended:
            await self._changed.wait()

    def _call(self, change: Callable[..., object], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server stops, and there are no readers
            self._loop.call_soon_threadsafe(self._change, change, values)

    def _change(self, change: Callable[..., object], values: tuple[object, ...]) -> None:
        change(*values)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@dataclass(frozen=True)
class LiveGeneration:
    """One generation: the future of its result, its tokens so far, and how to cancel it.

    It holds no reference to the request, whose tensors are many times larger than the answer.
    """

    future: Future[GenerateResult]
    log: TokenLog
    cancel: Callable[[], None]

    @property
    def result(self) -> GenerateResult:
        """The answer of an ended generation.

        Raises:
            ServerUnavailableError: the generation was cancelled; its partial answer is discarded.
            Exception: the error of a failed generation.
        """
        result = self.future.result(timeout=0)
        if result.finish_reason == "cancelled":
            raise ServerUnavailableError("the generation was cancelled", remedy="Send the request again.")
        return result


def start_generation(
    engine: Engine,
    request: GenerateRequest,
    record: Callable[[Future[GenerateResult]], None],
    client: str = "",
    stops: Sequence[str] = (),
) -> LiveGeneration:
    """Queue a request that `Engine.prepare` returned.

    Args:
        record: called with the future once it has ended.
        client: the client whose queue turn it uses.
        stops: the answer ends before the first of these.

    Raises:
        QueueFullError, ServerUnavailableError: as `Engine.submit`.
    """
    log = TokenLog()
    if stops:
        submitted = submit_with_stop_strings(engine, request, log.put, client, stops)
    else:
        submitted = engine.submit(request, log.put, client)
    submitted.future.add_done_callback(record)
    submitted.future.add_done_callback(log.end)
    return LiveGeneration(submitted.future, log, submitted.cancel)
