"""One request on its way through an engine: what it asked, what it has so far, and how it ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.detokenize import decode
from qwen3vl_edge.server.engines.protocol import GenerateResult, OnToken, ServedModel, Timings, Token


class Pending:
    """Belongs to the engine's thread, but for `future`, `cancelled` and `fail`.

    Args:
        request: as `prepare` returned it.
        client: whose turn and whose kept keys and values it uses.
    """

    def __init__(self, request: GenerateRequest, loaded: ServedModel, on_token: OnToken | None, client: str) -> None:
        self.request = request
        self.client = client
        self.ids: list[int] = []
        self.reused_tokens = 0
        self.cancelled = threading.Event()
        self.future: Future[GenerateResult] = Future()
        self.started: float | None = None
        self.future.set_running_or_notify_cancel()  # ended by `cancel` of its Generation alone
        self._loaded = loaded
        self._on_token = on_token
        self._enqueued = time.perf_counter()
        self._first: float | None = None

    @property
    def over(self) -> bool:
        """Nothing more is wanted of it."""
        return self.cancelled.is_set() or self.future.done()

    def begin(self) -> None:
        """Its turn has come."""
        self.started = time.perf_counter()

    def add(self, token: Token) -> bool:
        """Take the next token; True once the answer is complete.

        Raises:
            Exception: whatever its `on_token` raises.
        """
        if self._first is None:
            self._first = time.perf_counter()
        self.ids.append(token.id)
        if self._on_token is not None:
            self._on_token(token)
        return token.id in self._loaded.end_ids or len(self.ids) >= self.request.sampling.max_new_tokens

    def finish(self) -> None:
        """Hand over what there is; nothing happens where it failed before."""
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
        """End with an error; nothing happens where it ended before."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _finish_reason(self) -> str:
        if self.ids and self.ids[-1] in self._loaded.end_ids:
            return "stop"
        return "length" if len(self.ids) >= self.request.sampling.max_new_tokens else "cancelled"
