"""One in-flight request of an engine: its request, its tokens so far, and its result."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.detokenize import decode
from qwen3vl_edge.server.engines.protocol import GenerateResult, OnToken, ServedModel, Timings, Token


class Pending:
    """Belongs to the engine's thread, except `future`, `cancelled` and `fail`.

    Args:
        request: as `prepare` returned it.
        client: the client whose queue turn and prefix cache it uses.
    """

    def __init__(self, request: GenerateRequest, loaded: ServedModel, on_token: OnToken | None, client: str) -> None:
        self.request = request
        self.client = client
        self.ids: list[int] = []
        self.reused_tokens = 0
        self.cancelled = threading.Event()
        self.future: Future[GenerateResult] = Future()
        self.started: float | None = None
        self.future.set_running_or_notify_cancel()  # only its Generation's `cancel` can cancel it
        self._loaded = loaded
        self._on_token = on_token
        self._enqueued = time.perf_counter()
        self._first: float | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended or was cancelled."""
        return self.cancelled.is_set() or self.future.done()

    def begin(self) -> None:
        """Record the start time; called when it leaves the queue."""
        self.started = time.perf_counter()

    def add(self, token: Token) -> bool:
        """Add the next token; True once the answer is complete.

        Raises:
            Exception: raised by its `on_token`.
        """
        if self._first is None:
            self._first = time.perf_counter()
        self.ids.append(token.id)
        if self._on_token is not None:
            self._on_token(token)
        return token.id in self._loaded.end_ids or len(self.ids) >= self.request.sampling.max_new_tokens

    def finish(self) -> None:
        """Set the result from the tokens so far; a no-op if it has already failed."""
        ended = time.perf_counter()
        started = self.started if self.started is not None else ended
        first = self._first if self._first is not None else ended
        result = GenerateResult(
            generated_ids=tuple(self.ids),
            text=decode(self._loaded.tokenizer, self.ids) if self.ids else "",
            finish_reason=self._finish_reason(),
            prompt_tokens=int(self.request.input_ids.size),
            visual_tokens=sum(item.embeds.shape[0] for item in self.request.media),
            timings=Timings(started - self._enqueued, first - started, ended - first),
            reused_tokens=self.reused_tokens,
        )
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End with an error; a no-op if it has already ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _finish_reason(self) -> str:
        if self.ids and self.ids[-1] in self._loaded.end_ids:
            return "stop"
        return "length" if len(self.ids) >= self.request.sampling.max_new_tokens else "cancelled"
