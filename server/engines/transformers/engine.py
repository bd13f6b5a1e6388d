"""transformers' model behind the engine protocol: one thread that prefills prompts and decodes all requests together.

transformers' own continuous batching (`generate_batch`, 5.24) accepts token ids only, no embeddings and no M-RoPE
positions. So each call of the model here is the prefill of new prompts, or one token for every in-flight request. The
model keeps no state, so no request can be answered with another's.
"""

from __future__ import annotations

import threading
import time

import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits
from qwen3vl_edge.server.engines.detokenize import Detokenizer
from qwen3vl_edge.server.engines.fair_queue import FairQueue
from qwen3vl_edge.server.engines.prompt import prepare_prompt, warm_up_request
from qwen3vl_edge.server.engines.protocol import (
    EngineDiedError,
    EngineStats,
    EngineStuckError,
    GenerateResult,
    Generation,
    OnToken,
)
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.scheduler import Scheduler
from qwen3vl_edge.server.engines.transformers.sequence import Sequence
from qwen3vl_edge.server.errors import GenerationTimeoutError, ShuttingDownError


class TransformersEngine:
    """The model and its worker thread.

    Args:
        loaded: the language model.
        limits: upper limits of a request.
        options: how requests share the model.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits | None = None, options: BatchOptions | None = None) -> None:
        self.loaded = loaded
        self.limits = limits or Limits()
        self._options = options or BatchOptions()
        self._queue: FairQueue[Sequence] = FairQueue(self._options.max_queue, self._options.max_queue_per_client)
        self._scheduler = Scheduler(loaded, self._options, self._queue)
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._watch = threading.Thread(target=self._watch_deadlines, name="deadlines", daemon=True)
        self._stopped = threading.Event()
        self._worker.start()
        self._watch.start()

    def check_room(self, client: str = "") -> None:
        self._check_open()
        self._queue.check_room(client, self._retry_after)

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return prepare_prompt(request, self.loaded, self.limits)

    def submit(self, request: GenerateRequest, on_token: OnToken | None = None, client: str = "") -> Generation:
        self._check_open()
        sequence = Sequence(request, self.loaded, on_token, client)
        self._queue.put(client, sequence, self._retry_after)
        if (self._closed or self._scheduler.dead) and self._queue.remove(client, sequence):
            self._check_open()  # it ended after the first check: nobody would take the request

        def cancel() -> None:
            sequence.cancelled.set()
            if self._queue.remove(client, sequence):
                sequence.finish()

        return Generation(sequence.future, cancel)

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """Validate a request, queue it, and generate.

        Raises:
            ContractError: as `prepare` and `submit`, or out of memory or time.
        """
        return self.submit(self.prepare(request), on_token).future.result()

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.loaded.tokenizer)

    def stats(self) -> EngineStats:
        scheduler, progress = self._scheduler, self._scheduler.progress
        tokens = scheduler.batch.tokens
        return EngineStats(
            waiting=len(self._queue) + scheduler.waiting,
            running=scheduler.running,
            kv_tokens=tokens,
            kv_bytes=tokens * self.loaded.kv_bytes_per_token + len(scheduler.batch.rows) * self.loaded.state_bytes,
            slab_bytes=scheduler.batch.slab.nbytes,
            kept_bytes=scheduler.prefixes.nbytes,
            reused_tokens=scheduler.reused_tokens,
            steps=scheduler.steps,
            step_rows=scheduler.step_rows,
            stalled_s=0.0 if progress is None else time.perf_counter() - progress,
            dead=scheduler.dead,
        )

    @property
    def steps_are(self) -> str:
        """How decode steps run, for the log at start."""
        captured = self._scheduler.batch.captured
        if captured is None:
            return "as they are"
        return (
            "CUDA graphs" if captured.failed is None else f"as they are, for they cannot be captured: {captured.failed}"
        )

    def warm_up(self) -> GenerateResult:
        """Generate two tokens and capture the steps that the options name, so that the first request need not wait."""
        result = self.generate(warm_up_request(self.loaded))
        self._scheduler.captured.wait()
        return result

    def close(self, timeout: float = 10.0) -> None:
        self._closed = True
        self._stopped.set()
        self._scheduler.close()
        for sequence in self._queue.drain():
            sequence.fail(ShuttingDownError())
        for sequence in self._scheduler.under_way:
            sequence.cancelled.set()
        self._queue.wake()
        self._worker.join(timeout)
        for sequence in self._scheduler.under_way:  # if the worker is stuck
            sequence.fail(ShuttingDownError())

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDownError()
        self.stats().check(self._options.stall_s)

    @property
    def _retry_after(self) -> int:
        return max(1, round(self._scheduler.last_seconds))

    def _work(self) -> None:
        """The worker's thread."""
        if self.loaded.device.type == "cuda":
            torch.cuda.set_device(self.loaded.device)
        while not self._closed and not self._scheduler.dead:
            self._scheduler.turn()
        for sequence in self._queue.drain():
            sequence.fail(EngineDiedError() if self._scheduler.dead else ShuttingDownError())
        self._scheduler.stop()

    def _watch_deadlines(self) -> None:
        """The watcher's thread: fail a generation that takes too long, even if the model's call never returns."""
        options = self._options
        while not self._stopped.wait(min(1.0, options.max_seconds / 4)):
            now = time.perf_counter()
            for sequence in self._scheduler.under_way:
                if sequence.started is not None and now - sequence.started > options.max_seconds:
                    sequence.fail(GenerationTimeoutError(options.max_seconds))
            if (seconds := self.stats().stalled_s) > options.stall_s:
                for sequence in (*self._queue.drain(), *self._scheduler.under_way):
                    if sequence.started is None:
                        sequence.fail(EngineStuckError(seconds))
