"""vLLM's `AsyncLLM` behind the engine protocol: an event loop in its own thread; the model runs in other processes.

It runs in process, not as a proxy to vLLM's HTTP server: that server renders the prompt again with its own template,
so it would be impossible to prove that the model read the device's tokens. Here the token ids enter unchanged, and
the prompt ids of each answer are compared with them.

Requests wait here, in `FairQueue`, and at most `max_batch` are in vLLM, which would serve them first come, first
served.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits
from qwen3vl_edge.server.engines.detokenize import Detokenizer
from qwen3vl_edge.server.engines.fair_queue import FairQueue
from qwen3vl_edge.server.engines.pending import Pending
from qwen3vl_edge.server.engines.prompt import prepare_prompt, warm_up_request
from qwen3vl_edge.server.engines.protocol import EngineDiedError, EngineStats, GenerateResult, Generation, OnToken
from qwen3vl_edge.server.engines.vllm.checks import check_request
from qwen3vl_edge.server.engines.vllm.inputs import engine_input
from qwen3vl_edge.server.engines.vllm.model import VllmModel
from qwen3vl_edge.server.engines.vllm.sampling import sampling_arguments, token_of
from qwen3vl_edge.server.engines.vllm.stat_logger import StatLogger
from qwen3vl_edge.server.errors import GenerationTimeoutError, PromptChangedError, ShuttingDownError

logger = logging.getLogger("server")


@dataclass(frozen=True)
class QueueOptions:
    """How requests share vLLM; as `BatchOptions` of the transformers engine."""

    max_queue: int = 16
    max_queue_per_client: int | None = None
    max_batch: int = 8
    max_seconds: float = 600.0
    stall_s: float = 120.0


class VllmEngine:
    """vLLM and the queue before it.

    Args:
        llm: an `AsyncLLM` that was created in `loop`.
        loop: runs in another thread; `close` stops it.
        stat_logger: the stat logger of `llm`.
    """

    def __init__(
        self,
        llm: Any,
        loop: asyncio.AbstractEventLoop,
        loaded: VllmModel,
        stat_logger: StatLogger,
        limits: Limits,
        options: QueueOptions,
    ) -> None:
        self.loaded = loaded
        self.limits = limits
        self._llm, self._loop, self._stat_logger, self._options = llm, loop, stat_logger, options
        self._queue: FairQueue[Pending] = FairQueue(options.max_queue, options.max_queue_per_client)
        self._running: dict[Pending, asyncio.Task[None]] = {}  # used only in the loop's thread
        self._moved = time.perf_counter()  # when vLLM last returned an output
        self._reused_tokens = 0
        self._last_seconds = 1.0
        self._closed = threading.Event()

    def check_room(self, client: str = "") -> None:
        self._check_open()
        self._queue.check_room(client, self._retry_after)

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        prepared = prepare_prompt(request, self.loaded, self.limits)
        check_request(prepared, self.loaded)
        return prepared

    def submit(self, request: GenerateRequest, on_token: OnToken | None = None, client: str = "") -> Generation:
        self._check_open()
        pending = Pending(request, self.loaded, on_token, client)
        self._queue.put(client, pending, self._retry_after)
        self._soon(self._admit)
        if self._closed.is_set():  # closed between the check and `put`
            self._refuse_waiting()

        def cancel() -> None:
            pending.cancelled.set()
            if self._queue.remove(client, pending):
                pending.finish()
            else:
                self._soon(self._stop, pending)

        return Generation(pending.future, cancel)

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """Validate a request, queue it, and generate.

        Raises:
            ContractError: as `prepare` and `submit`, or out of time.
        """
        return self.submit(self.prepare(request), on_token).future.result()

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.loaded.tokenizer)

    def stats(self) -> EngineStats:
        running = len(self._running)
        return EngineStats(
            waiting=len(self._queue),
            running=running,
            kv_tokens=self._stat_logger.kv_tokens,
            reused_tokens=self._reused_tokens,
            steps=self._stat_logger.steps,
            step_rows=self._stat_logger.step_rows,
            stalled_s=time.perf_counter() - self._moved if running else 0.0,
            dead=bool(self._llm.errored) and not self._closed.is_set(),
        )

    def warm_up(self) -> GenerateResult:
        """Generate two tokens from a text and the smallest picture, because vLLM compiles code at its first use."""
        return self.generate(warm_up_request(self.loaded, logprobs=1))

    def close(self, timeout: float = 10.0) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._refuse_waiting()
        stopped = asyncio.run_coroutine_threadsafe(self._stop_all(), self._loop)
        with suppress(Exception):
            stopped.result(timeout)
        with suppress(Exception):
            self._llm.shutdown(timeout=timeout)
        self._soon(self._loop.stop)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ShuttingDownError()
        self.stats().check(self._options.stall_s)

    def _refuse_waiting(self) -> None:
        for pending in self._queue.drain():
            pending.fail(ShuttingDownError())

    @property
    def _retry_after(self) -> int:
        return max(1, round(self._last_seconds))

    def _soon(self, call: Any, *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed and `close` has ended every request
            self._loop.call_soon_threadsafe(call, *arguments)

    # Methods below run in the loop's thread.

    def _admit(self) -> None:
        """Start queued requests, up to `max_batch` in vLLM."""
        while len(self._running) < self._options.max_batch and not self._closed.is_set():
            pending = self._queue.take()
            if pending is None:
                return
            if pending.over:
                pending.finish()
                continue
            if not self._running:
                self._moved = time.perf_counter()
            self._running[pending] = self._loop.create_task(self._run(pending))

    def _stop(self, pending: Pending) -> None:
        task = self._running.get(pending)
        if task is not None:
            task.cancel()

    async def _stop_all(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, pending: Pending) -> None:
        """Run one request to its end; an error fails only this request."""
        pending.begin()
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._options.max_seconds):
                await self._follow(pending)
            pending.finish()
        except asyncio.CancelledError:
            pending.finish()
        except Exception as error:
            pending.fail(self._client_error(error))
        finally:
            self._running.pop(pending, None)
            self._last_seconds = time.perf_counter() - began
            self._admit()

    async def _follow(self, pending: Pending) -> None:
        request = pending.request
        prompt_ids = [int(token) for token in request.input_ids]
        prompt = await asyncio.to_thread(engine_input, request, self.loaded, pending.client)
        arguments = sampling_arguments(request, self.loaded.end_ids)
        parameters = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)
        # vLLM's request ids must be unique; a client may reuse its own.
        async with aclosing(self._llm.generate(prompt, parameters, uuid.uuid4().hex)) as outputs:
            async for output in outputs:
                self._moved = time.perf_counter()
                if list(output.prompt_token_ids or ()) != prompt_ids:
                    raise PromptChangedError(len(prompt_ids), len(output.prompt_token_ids or ()))
                self._count_reused(pending, output.num_cached_tokens or 0)
                self._take(pending, output.outputs[0])

    def _take(self, pending: Pending, step: Any) -> None:
        places = step.logprobs or [None] * len(step.token_ids)
        for token_id, logprobs in zip(step.token_ids, places, strict=True):
            pending.add(token_of(int(token_id), logprobs, pending.request.logprobs))

    def _count_reused(self, pending: Pending, tokens: int) -> None:
        self._reused_tokens += max(0, tokens - pending.reused_tokens)
        pending.reused_tokens = max(tokens, pending.reused_tokens)

    def _client_error(self, error: Exception) -> Exception:
        """Convert an error to one that clients may see."""
        if isinstance(error, TimeoutError):
            return GenerationTimeoutError(self._options.max_seconds)
        if isinstance(error, EngineDeadError):
            return EngineDiedError()
        if isinstance(error, VLLMClientError):
            return WireError(f"vLLM rejected the request: {' '.join(str(error).split())[:300]}")
        return error
