"""Stop strings at the generation itself: it ends where one is found, for all of its readers alike.

Readers may come later or again (an Idempotency-Key), so a reader must not be what ends the generation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.http.stop_strings import StopStrings
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.protocol import Generation

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.detokenize import Detokenizer
    from qwen3vl_edge.server.engines.protocol import Engine, GenerateResult, OnToken, Token


def submit_until(
    engine: Engine, request: GenerateRequest, on_token: OnToken, client: str, stops: Sequence[str]
) -> Generation:
    """As `engine.submit`, but the answer ends before the first of `stops`.

    Its result then has `finish_reason` "stop", the text before the stop string, and the tokens up to the one that
    completed it.

    Raises:
        QueueFullError, ServerUnavailableError: as the engine.
    """
    watch = _Watch(engine.detokenizer(), stops, on_token)
    generation = engine.submit(request, watch.put, client)
    watch.cancel_with(generation.cancel)
    ended: Future[GenerateResult] = Future()
    ended.set_running_or_notify_cancel()

    def settle(future: Future[GenerateResult]) -> None:
        if (error := future.exception()) is not None:
            ended.set_exception(error)
        else:
            ended.set_result(watch.cut(future.result()))

    generation.future.add_done_callback(settle)
    return Generation(ended, generation.cancel)


class _Watch:
    """Reads along in the engine's thread."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], on_token: OnToken) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._on_token = on_token
        self._shown: list[str] = []
        self._ids: list[int] = []
        self._cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()  # tokens may come before `submit` has returned

    def put(self, token: Token) -> None:
        if self._stops.found:
            return  # the step that was under way when the generation was cancelled
        self._ids.append(token.id)
        self._shown.append(self._stops.add(self._detokenizer.add(token.id)))
        self._on_token(token)
        if self._stops.found:
            with self._lock:
                cancel = self._cancel
            if cancel is not None:
                cancel()

    def cancel_with(self, cancel: Callable[[], None]) -> None:
        with self._lock:
            self._cancel = cancel
            found = self._stops.found
        if found:
            cancel()

    def cut(self, result: GenerateResult) -> GenerateResult:
        """The result as the stop strings leave it."""
        if not self._stops.found and result.finish_reason != "cancelled":
            self._shown.append(self._stops.add(self._detokenizer.finish()))
        if not self._stops.found:
            return result
        return replace(result, finish_reason="stop", text="".join(self._shown), generated_ids=tuple(self._ids))
