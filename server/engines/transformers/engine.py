"""transformers' model behind the engine protocol: one thread that prefills prompts and decodes all requests together.

transformers' own continuous batching (`generate_batch`, 5.24) accepts token ids only, no embeddings and no M-RoPE
positions. So each step here is one call of the model: the prefill of one new prompt, or one token for every in-flight
request. The model keeps no state, so no request can be answered with another's state.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits
from qwen3vl_edge.server.engines.detokenize import Detokenizer
from qwen3vl_edge.server.engines.fair_queue import FairQueue
from qwen3vl_edge.server.engines.prompt import prepare_prompt, warm_up_request
from qwen3vl_edge.server.engines.protocol import EngineStats, EngineStuckError, GenerateResult, Generation, OnToken
from qwen3vl_edge.server.engines.transformers.decode_batch import DecodeBatch
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.prefill import prefill
from qwen3vl_edge.server.engines.transformers.prefix_cache import PrefixCache
from qwen3vl_edge.server.engines.transformers.sequence import Sequence
from qwen3vl_edge.server.errors import GenerationTimeoutError, OutOfMemoryError, ShuttingDownError

logger = logging.getLogger("server")


@dataclass(frozen=True)
class BatchOptions:
    """How requests share the model.

    Attributes:
        max_queue: requests that may wait.
        max_queue_per_client: waiting requests of one client; None for no limit per client.
        max_batch: requests that generate at once.
        max_batch_tokens: limit of their prompt and answer tokens together; a single request may exceed it.
        max_seconds: seconds after which a generation fails, not counting the wait in the queue.
        stall_s: seconds of one step after which the engine counts as stuck and rejects requests.
        prefix_bytes: size of the prefix cache; 0 disables it.
        prefix_s: seconds since its last use after which a cached prefix expires.
    """

    max_queue: int = 16
    max_queue_per_client: int | None = None
    max_batch: int = 8
    max_batch_tokens: int = 65_536
    max_seconds: float = 600.0
    stall_s: float = 120.0
    prefix_bytes: int = 0
    prefix_s: float = 600.0


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
        self._batch = DecodeBatch(loaded)
        self._prefixes = PrefixCache(loaded.shape, self._options.prefix_bytes, self._options.prefix_s)
        self._next: Sequence | None = None  # popped from the queue, waits for room in the batch
        self._current: Sequence | None = None  # in prefill
        self._step_began: float | None = None
        self._reused_tokens = self._steps = self._step_rows = 0
        self._last_seconds = 1.0
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
        began = self._step_began
        return EngineStats(
            waiting=len(self._queue) + (self._next is not None),
            running=len(self._batch.rows) + (self._current is not None),
            kv_tokens=self._batch.tokens,
            kv_bytes=self._batch.tokens * self.loaded.kv_bytes_per_token,
            kept_bytes=self._prefixes.nbytes,
            reused_tokens=self._reused_tokens,
            steps=self._steps,
            step_rows=self._step_rows,
            stalled_s=0.0 if began is None else time.perf_counter() - began,
        )

    def warm_up(self) -> GenerateResult:
        """Generate two tokens, so that the first request does not wait for lazy initialisation."""
        return self.generate(warm_up_request(self.loaded))

    def close(self, timeout: float = 10.0) -> None:
        self._closed = True
        self._stopped.set()
        for sequence in self._queue.drain():
            sequence.fail(ShuttingDownError())
        for sequence in self._under_way():
            sequence.cancelled.set()
        self._queue.wake()
        self._worker.join(timeout)
        for sequence in self._under_way():  # if the worker is stuck
            sequence.fail(ShuttingDownError())

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDownError()
        self.stats().check(self._options.stall_s)

    @property
    def _retry_after(self) -> int:
        return max(1, round(self._last_seconds))

    def _under_way(self) -> list[Sequence]:
        rows = [row.sequence for row in list(self._batch.rows)]
        return [item for item in (self._current, self._next, *rows) if item is not None]

    # Methods below run in the worker's thread.

    def _work(self) -> None:
        while not self._closed:
            if not self._batch.rows and self._next is None:
                self._prefixes.expire()
                self._queue.wait(1.0)
            self._admit()
            self._step()
        for sequence in [*self._queue.drain(), *([self._next] if self._next else [])]:
            sequence.fail(ShuttingDownError())
        for sequence in self._batch.clear():
            sequence.finish()

    def _admit(self) -> None:
        """Prefill one prompt, if one waits and fits; only one, so that in-flight answers continue between two."""
        sequence = self._next or self._queue.take()
        self._next = None
        while sequence is not None and sequence.over:
            sequence.finish()
            sequence = self._queue.take()
        if sequence is None:
            return
        if not self._fits(sequence):
            self._next = sequence
            return
        self._current = sequence
        try:
            self._start(sequence)
        except BaseException as error:
            self._fail([sequence], error)
        finally:
            self._current = None
            self._step_began = None

    def _fits(self, sequence: Sequence) -> bool:
        rows = self._batch.rows
        if not rows:
            return True
        held = [row.sequence.tokens_at_most for row in rows] + [sequence.tokens_at_most]
        return len(rows) < self._options.max_batch and len(held) * max(held) <= self._options.max_batch_tokens

    def _start(self, sequence: Sequence) -> None:
        sequence.begin()
        self._step_began = sequence.started
        sequence.request = self._prefixes.named(sequence.request)
        held = self._prefixes.find(sequence.request, sequence.client)
        if held is not None:
            sequence.reused_tokens = held[0][0].shape[2]
            self._reused_tokens += sequence.reused_tokens
        computed = prefill(sequence.request, self.loaded, held)
        if sequence.advance(computed.logits):
            sequence.finish()
            self._prefixes.keep(sequence.request, sequence.ids, sequence.client, lambda: computed.layers)
        else:
            self._batch.add(sequence, computed.layers, computed.delta)

    def _step(self) -> None:
        """Decode one token for every in-flight request, and remove those that are over."""
        self._leave({index for index, row in enumerate(self._batch.rows) if row.sequence.over})
        if not self._batch.rows:
            return
        self._step_began = time.perf_counter()
        try:
            logits = self._batch.step()
        except BaseException as error:
            self._fail(self._batch.clear(), error)
            return
        finally:
            self._step_began = None
        self._steps += 1
        self._step_rows += len(self._batch.rows)
        self._leave({index for index in range(len(self._batch.rows)) if self._advance(index, logits[index])})

    def _advance(self, index: int, logits: torch.Tensor) -> bool:
        """Whether the row is over."""
        sequence = self._batch.rows[index].sequence
        try:
            return sequence.advance(logits)
        except BaseException as error:
            self._fail([sequence], error)
            return True

    def _leave(self, indices: set[int]) -> None:
        for index in sorted(indices):
            sequence = self._batch.rows[index].sequence
            sequence.finish()
            if sequence.started is not None:
                self._last_seconds = time.perf_counter() - sequence.started
            if sequence.future.exception() is None:
                self._keep(index)
        self._batch.remove(indices)

    def _keep(self, index: int) -> None:
        sequence = self._batch.rows[index].sequence
        try:
            self._prefixes.keep(sequence.request, sequence.ids, sequence.client, lambda: self._batch.layers(index))
        except (torch.OutOfMemoryError, MemoryError):
            self._prefixes.clear()

    def _fail(self, sequences: list[Sequence], error: BaseException) -> None:
        """Fail these requests; the engine continues."""
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            logger.error("out of memory with %d requests: %s", len(sequences), error)
            self._prefixes.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            error = OutOfMemoryError(
                "the server has no memory for this request", remedy="Send fewer or smaller pictures."
            )
        for sequence in sequences:
            sequence.fail(error)

    # Runs in the watcher's thread.

    def _watch_deadlines(self) -> None:
        """Fail a generation that takes too long, even if the model never returns from its current step."""
        options = self._options
        while not self._stopped.wait(min(1.0, options.max_seconds / 4)):
            now = time.perf_counter()
            for sequence in self._under_way():
                if sequence.started is not None and now - sequence.started > options.max_seconds:
                    sequence.fail(GenerationTimeoutError(options.max_seconds))
            if (seconds := self.stats().stalled_s) > options.stall_s:
                for sequence in self._queue.drain():
                    sequence.fail(EngineStuckError(seconds))
