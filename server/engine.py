"""One generation at a time, in one thread, from a bounded queue. Knows nothing of HTTP.

The model keeps `rope_deltas`, the offset between tokens and M-RoPE positions, on itself, and torch's
random generator is global: two interleaved generations would answer with each other's. Hence one worker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from contract.errors import ServerUnavailableError
from contract.grid import Grid
from contract.http_errors import QueueFullError
from contract.request import GenerateRequest, Limits, Media, Sampling
from contract.validate import validate_request
from server.detokenize import Detokenizer, decode
from server.errors import OutOfMemoryError
from server.generation_inputs import check_positions, drop_masked_tokens, generation_config, generation_inputs
from server.language_model import LoadedModel

OnToken = Callable[[int], None]


@dataclass(frozen=True)
class Timings:
    """Seconds of one generation: waiting, until the first token, and from there to the last."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class GenerateResult:
    """A finished answer.

    Attributes:
        generated_ids: new tokens only, with the end token if there was one.
        text: of those, without special tokens.
        finish_reason: "stop" (end token), "length" or "cancelled".
        prompt_tokens: without masked ones.
    """

    generated_ids: tuple[int, ...]
    text: str
    finish_reason: str
    prompt_tokens: int
    visual_tokens: int
    timings: Timings


@dataclass(frozen=True)
class _Job:
    request: GenerateRequest
    on_token: OnToken | None
    cancel: threading.Event
    future: Future[GenerateResult] = field(default_factory=Future)
    enqueued: float = field(default_factory=time.perf_counter)


class Engine:
    """The model and its worker thread.

    Args:
        loaded: the language model.
        limits: what a request may hold at most.
        max_queue: requests that may wait while one generates.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits | None = None, max_queue: int = 16) -> None:
        self.loaded = loaded
        self.limits = limits or Limits()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=max_queue)
        self._current: _Job | None = None
        self._closed = False
        self._last_seconds = 1.0
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue, without the one that generates."""
        return self._jobs.qsize()

    def check_room(self) -> None:
        """Refuse early what `submit` would refuse.

        Raises:
            QueueFullError: the queue is full.
        """
        if self._jobs.full():
            raise self._queue_full()

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        """Check a request against model and limits; returns it without masked tokens.

        Raises:
            ContractError: as `contract.validate.validate_request`, or longer than the model's context.
        """
        validate_request(request, self.loaded.shape, self.limits)
        unmasked = drop_masked_tokens(request)
        if unmasked.input_ids.size != request.input_ids.size:
            # Two pictures kept apart only by masked tokens would now be one span of placeholders.
            validate_request(unmasked, self.loaded.shape, self.limits)
        check_positions(unmasked, self.loaded)
        return unmasked

    def submit(
        self, request: GenerateRequest, on_token: OnToken | None = None, cancel: threading.Event | None = None
    ) -> Future[GenerateResult]:
        """Queue a request that `prepare` returned.

        Args:
            on_token: called in the worker thread with each new token id.
            cancel: once set, the generation ends after the current step, or before it starts.

        Raises:
            QueueFullError: no room.
            ServerUnavailableError: the engine is closed.
        """
        if self._closed:
            raise ServerUnavailableError("the server is shutting down")
        job = _Job(request, on_token, cancel or threading.Event())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise self._queue_full() from None
        return job.future

    def generate(
        self, request: GenerateRequest, on_token: OnToken | None = None, cancel: threading.Event | None = None
    ) -> GenerateResult:
        """Check a request, wait its turn, and generate.

        Raises:
            ContractError: as `prepare` and `submit`, or no memory for it.
        """
        return self.submit(self.prepare(request), on_token, cancel).result()

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for the text of one answer as it grows."""
        return Detokenizer(self.loaded.tokenizer)

    def warm_up(self) -> GenerateResult:
        """Generate two tokens from a text and the smallest picture, so that the first request finds all in place."""
        shape = self.loaded.shape
        grid = Grid(1, shape.merge_size, shape.merge_size)
        zeros = np.zeros((1, shape.hidden_size), dtype=np.float16)
        text = self.loaded.end_ids[0]
        return self.generate(
            GenerateRequest(
                model_hash=None,
                input_ids=np.array([text, shape.image_token_id, text], dtype=np.int64),
                media=(Media("image", grid, zeros, (zeros,) * shape.deepstack_levels),),
                sampling=Sampling(max_new_tokens=2),
            )
        )

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what runs and waits, and end the worker."""
        self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(ServerUnavailableError("the server is shutting down"))
        if (current := self._current) is not None:
            current.cancel.set()
        self._jobs.put(None)
        self._worker.join(timeout)

    def _queue_full(self) -> QueueFullError:
        return QueueFullError(self.waiting, retry_after=max(1, round(self._last_seconds)))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            self._current = job
            try:
                result = self._run(job)
            except BaseException as error:
                self._current = None
                job.future.set_exception(_as_contract_error(error))
            else:
                self._current = None
                job.future.set_result(result)

    def _run(self, job: _Job) -> GenerateResult:
        request = job.request
        started = time.perf_counter()
        recorder = _Recorder(job.on_token)
        if not job.cancel.is_set():
            self._seed(request.sampling)
            self.loaded.model.model.rope_deltas = None  # of the request before; generate sets it anew
            self.loaded.model.generate(
                **generation_inputs(request, self.loaded),
                generation_config=generation_config(request.sampling, self.loaded),
                streamer=recorder,
                stopping_criteria=StoppingCriteriaList([_Cancelled(job.cancel)]),
            )
        ended = time.perf_counter()
        first = recorder.first if recorder.first is not None else ended
        self._last_seconds = ended - started
        return GenerateResult(
            generated_ids=tuple(recorder.ids),
            text=decode(self.loaded.tokenizer, recorder.ids) if recorder.ids else "",
            finish_reason=self._finish_reason(recorder.ids, request.sampling.max_new_tokens),
            prompt_tokens=int(request.input_ids.size),
            visual_tokens=sum(item.embeds.shape[0] for item in request.media),
            timings=Timings(started - job.enqueued, first - started, ended - first),
        )

    def _finish_reason(self, ids: list[int], limit: int) -> str:
        if ids and ids[-1] in self.loaded.end_ids:
            return "stop"
        return "length" if len(ids) >= limit else "cancelled"

    @staticmethod
    def _seed(sampling: Sampling) -> None:
        """Same seed, same answer; and without one, not the numbers that an earlier request's seed left behind."""
        if sampling.do_sample and sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        elif sampling.do_sample:
            torch.seed()


class _Recorder(BaseStreamer):  # type: ignore[misc]
    """Takes tokens as `generate` makes them."""

    def __init__(self, on_token: OnToken | None) -> None:
        self.ids: list[int] = []
        self.first: float | None = None
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate hands over the prompt first
            self._prompt_seen = True
            return
        if self.first is None:
            self.first = time.perf_counter()
        for token_id in value.reshape(-1).tolist():
            self.ids.append(token_id)
            if self._on_token is not None:
                self._on_token(token_id)

    def end(self) -> None:
        """Nothing is held back here."""


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._cancel.is_set(), dtype=torch.bool, device=input_ids.device)


def _as_contract_error(error: BaseException) -> BaseException:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return OutOfMemoryError("the server has no memory for this request", remedy="Send fewer or smaller pictures.")
    return error
