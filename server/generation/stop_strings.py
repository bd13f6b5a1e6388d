"""Stop strings: they cancel the generation itself, and so end the answer of each of its readers.

Readers may attach later or again (an Idempotency-Key), so a reader cannot be what ends the generation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.http.stop_matcher import StopStrings
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.protocol import Generation

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.detokenize import Detokenizer
    from qwen3vl_edge.server.engines.protocol import Engine, GenerateResult, OnToken, Token


def submit_with_stop_strings(
    engine: Engine, request: GenerateRequest, on_token: OnToken, client: str, stops: Sequence[str]
) -> Generation:
    """As `engine.submit`, but the answer ends before the first of `stops`.

    Its result then has `finish_reason` "stop", the text before the stop string, and the tokens up to the one that
    completed it.

    Raises:
        QueueFullError, ServerUnavailableError: as `Engine.submit`.
    """
    monitor = _StopMonitor(engine.detokenizer(), stops, on_token)
    generation = engine.submit(request, monitor.put, client)
    monitor.set_cancel(generation.cancel)
    truncated: Future[GenerateResult] = Future()
    truncated.set_running_or_notify_cancel()

    def settle(future: Future[GenerateResult]) -> None:
        if (error := future.exception()) is not None:
            truncated.set_exception(error)
        else:
            truncated.set_result(monitor.truncate(future.result()))

    generation.future.add_done_callback(settle)
    return Generation(truncated, generation.cancel)


class _StopMonitor:
    """Detokenizes the answer in the engine's thread, and cancels the generation at the first stop string."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], on_token: OnToken) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._on_token = on_token
        self._text: list[str] = []
        self._ids: list[int] = []
        self._cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()  # tokens may come before `submit` has returned

    def put(self, token: Token) -> None:
        if self._stops.found:
            return  # token of a step that was in flight when the generation was cancelled
        self._ids.append(token.id)
        self._text.append(self._stops.add(self._detokenizer.add(token.id)))
        self._on_token(token)
        if self._stops.found:
            with self._lock:
                cancel = self._cancel
            if cancel is not None:
                cancel()

    def set_cancel(self, cancel: Callable[[], None]) -> None:
        with self._lock:
            self._cancel = cancel
            stopped = self._stops.found
        if stopped:
            cancel()

    def truncate(self, result: GenerateResult) -> GenerateResult:
        """The result without the stop string and what follows it."""
        if not self._stops.found and result.finish_reason != "cancelled":
            self._text.append(self._stops.add(self._detokenizer.finish()))
        if not self._stops.found:
            return result
        return replace(result, finish_reason="stop", text="".join(self._text), generated_ids=tuple(self._ids))
