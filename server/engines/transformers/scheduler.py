"""Which call of the model is next: the prefill of waiting prompts, or a step for the answers under way.

New prompts are computed as soon as there is room for them, several together where they are short. While a prompt is
computed, the answers under way get their steps between its layers (`pace.py`). A step's tokens are read while the next
one runs, where the device is a GPU: so that it never waits for the host.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import torch

from qwen3vl_edge.server.engines.fair_queue import FairQueue
from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.between_layers import between_layers
from qwen3vl_edge.server.engines.transformers.captured_steps import captured_steps
from qwen3vl_edge.server.engines.transformers.decode_batch import DecodeBatch
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers, tokens_of
from qwen3vl_edge.server.engines.transformers.kv_cache.prefix_cache import PrefixCache
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.pace import Pace
from qwen3vl_edge.server.engines.transformers.prefill import Prefilled, prefill, prefill_together
from qwen3vl_edge.server.engines.transformers.sequence import Sequence
from qwen3vl_edge.server.errors import OutOfMemoryError, ShuttingDownError

logger = logging.getLogger("server")

TOGETHER_TOKENS = 2048  # of prompts that are computed together, padding included, while no answer is under way
PADDING = 0.25  # of their tokens, at most


class _AbandonedError(Exception):
    """Nobody waits for the prompts that are being computed."""


class Scheduler:
    """The batch and the prefix cache; belongs to the engine's thread, except what says otherwise.

    Args:
        queue: where requests wait.

    Attributes:
        steps, step_rows, reused_tokens: totals, as `EngineStats` has them.
        last_seconds: of the last ended generation.
        progress: when the current call of the model began or got to its next layer, in `time.perf_counter` seconds;
            None without one. Any thread may read these.
    """

    def __init__(self, loaded: LoadedModel, options: BatchOptions, queue: FairQueue[Sequence]) -> None:
        captured = captured_steps(loaded, options.capture)
        self.batch = DecodeBatch(loaded, options.max_batch, options.max_batch_tokens, captured)
        self.prefixes = PrefixCache(loaded.shape, options.prefix_bytes, options.prefix_s)
        self.steps = self.step_rows = self.reused_tokens = 0
        self.last_seconds = 1.0
        self.progress: float | None = None
        self.captured = threading.Event()
        self._loaded = loaded
        self._queue = queue
        self._max_rows = options.max_batch
        self._pace = Pace(len(loaded.decoder_layers))
        # Steps that may run before their tokens are read.
        self._ahead = 1 if captured is not None or loaded.device.type == "cuda" else 0
        self._held_back: deque[Sequence] = deque()  # taken from the queue, wait for room in the batch
        self._computing: list[Sequence] = []  # in prefill
        self._in_between = False  # steps run between the layers of the current prefill
        self._short = False  # of memory for more rows, until one leaves
        self._step_seconds = 0.0
        self._closing = False
        self._captures = deque(options.capture_sizes if captured is not None else ())

    @property
    def waiting(self) -> int:
        """Requests that were taken from the queue and wait for room; any thread may ask."""
        return len(self._held_back)

    @property
    def under_way(self) -> list[Sequence]:
        """Requests that were taken from the queue; any thread may ask."""
        return [*self._computing, *list(self._held_back), *(row.sequence for row in list(self.batch.rows))]

    @property
    def running(self) -> int:
        """Requests in prefill or decode; any thread may ask."""
        return len(self.batch.rows) + len(self._computing)

    def close(self) -> None:
        """End a prefill at its next layer; any thread may call it."""
        self._closing = True

    @torch.inference_mode()
    def turn(self) -> None:
        """Wait for requests if there are none; then compute prompts that fit, and one step."""
        if not self.batch.rows and not self._held_back and not self._capture_next():
            self.prefixes.expire()
            self._queue.wait(1.0)
        self._admit()
        self._step()

    def stop(self) -> None:
        """End everything."""
        for sequence in self._held_back:
            sequence.fail(ShuttingDownError())
        for sequence in self.batch.clear():
            sequence.finish()

    def _capture_next(self) -> bool:
        """Capture one of the sizes that the options name, once the first request has shown the model's shapes."""
        if not self._captures:
            self.captured.set()
        if not self._captures or self.batch.slab.nbytes == 0:
            return False
        rows, columns = self._captures.popleft()
        try:
            self.batch.capture(rows, columns)
        except (torch.OutOfMemoryError, MemoryError):
            logger.warning("no memory to capture decode steps of %dx%d", rows, columns)
            self._free_memory()
        return True

    # Prefill.

    def _admit(self) -> None:
        if self._short and self.batch.rows:
            return
        self._short = False
        found = self._take()
        if not found or not self._reserve([sequence for sequence, _ in found]):
            return
        self._compute(found)

    def _take(self) -> list[tuple[Sequence, Layers | None]]:
        """The next requests that fit and are computed together, with their cached prefixes."""
        found: list[tuple[Sequence, Layers | None]] = []
        while (sequence := self._held_back.popleft() if self._held_back else self._queue.take()) is not None:
            if sequence.over:
                sequence.finish()
                continue
            group = [item for item, _ in found]
            if not self.batch.fits([*group, sequence]):
                self._held_back.appendleft(sequence)
                break
            try:
                held = self._cached(sequence)
            except BaseException as error:
                self._fail([sequence], error)
                continue
            if found and (held is not None or not self._together([*group, sequence])):
                self._held_back.appendleft(sequence)
                break
            found.append((sequence, held))
            if held is not None:
                break
        return found

    def _cached(self, sequence: Sequence) -> Layers | None:
        """The longest prefix of its prompt that the cache holds."""
        sequence.request = self.prefixes.named(sequence.request)
        return self.prefixes.find(sequence.request, sequence.client)

    def _together(self, group: list[Sequence]) -> bool:
        """Whether these prompts are computed in one call."""
        sizes = [sequence.request.input_ids.size for sequence in group]
        padded = len(sizes) * max(sizes)
        at_once = padded <= TOGETHER_TOKENS and not (self.batch.rows and self._pace.is_long(padded))
        return at_once and padded <= (1 + PADDING) * sum(sizes)

    def _reserve(self, group: list[Sequence]) -> bool:
        """Make room for these requests; without memory for it they wait, or the first fails if it is alone."""
        try:
            self.batch.reserve(group)
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._free_memory()
            if not self.batch.rows:
                self._fail([group.pop(0)], error)
            else:
                logger.warning("no memory for %d more requests: they wait", len(group))
            self._short = True
            self._held_back.extendleft(reversed(group))
            return False
        return True

    def _compute(self, found: list[tuple[Sequence, Layers | None]]) -> None:
        group = [sequence for sequence, _ in found]
        for sequence in group:
            sequence.begin()
        self._computing, self.progress = group, time.perf_counter()
        try:
            computed = self._prefill(found)
        except _AbandonedError:
            for sequence in group:
                sequence.finish()
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(group) == 1:
                self._fail(group, error)
            else:  # there may be enough for each alone
                self._free_memory()
                for item in found:
                    self._compute([item])
        except BaseException as error:
            self._fail(group, error)
        else:
            self._join(group, computed)
        finally:
            self._computing, self.progress = [], None

    def _prefill(self, found: list[tuple[Sequence, Layers | None]]) -> list[Prefilled]:
        requests = [sequence.request for sequence, _ in found]
        sequence, held = found[0]
        reused = sequence.reused_tokens = 0 if held is None else tokens_of(held)
        self.reused_tokens += reused
        tokens = sum(request.input_ids.size for request in requests) - reused
        self._in_between = self._pace.is_long(tokens) and self._well_filled
        began, stepped = time.perf_counter(), self._step_seconds
        with between_layers(self._loaded, self._between_layers):
            if len(found) > 1:
                computed = prefill_together(requests, self._loaded)
            else:
                computed = [prefill(requests[0], self._loaded, held, self._most_tokens)]
        self._pace.prefilled(tokens, time.perf_counter() - began - (self._step_seconds - stepped))
        return computed

    @property
    def _well_filled(self) -> bool:
        """Whether at least half of the rows that there may soon be are there: a step costs as much with few of them."""
        rows = len(self.batch.rows)
        soon = rows + len(self._computing) + len(self._held_back) + len(self._queue)
        return 2 * rows >= min(self._max_rows, soon)

    def _most_tokens(self) -> int | None:
        return self._pace.piece if self.batch.rows and self._in_between else None

    def _between_layers(self) -> None:
        self.progress = time.perf_counter()
        if self._closing or all(sequence.over for sequence in self._computing):
            raise _AbandonedError
        if self._in_between and self.batch.rows and self._pace.due:
            self._step()
            self.progress = time.perf_counter()

    def _join(self, group: list[Sequence], computed: list[Prefilled]) -> None:
        try:
            self.batch.reserve(group)  # once more, for a step that failed in the meantime gave the memory back
            self.batch.join(group, computed)
        except BaseException as error:
            self._fail([*self.batch.clear(), *group], error)

    # Decode.

    def _step(self) -> None:
        """One token for every answer under way; those that are over leave."""
        began = time.perf_counter()
        try:
            if any(row.sequence.exhausted for row in self.batch.rows):
                self._read(0)
            self._leave()
            if not self.batch.rows:
                self._read(0)
                return
            self.progress = began
            self.batch.launch()
            self.steps += 1
            self.step_rows += len(self.batch.rows)
            self._read(self._ahead)
        except BaseException as error:
            self._fail(self.batch.clear(), error)
            return
        finally:
            self.progress = None
        self._leave()
        seconds = time.perf_counter() - began
        self._step_seconds += seconds
        self._pace.stepped(None if self._computing and self._ahead else seconds)

    def _read(self, under_way: int) -> None:
        """Hand over the tokens of all launched steps but the last `under_way`."""
        for sequence, token in self.batch.arrived(under_way):
            if isinstance(token, Token):
                self._advance(sequence, token)
            else:
                self._fail([sequence], token)

    def _advance(self, sequence: Sequence, token: Token) -> None:
        try:
            sequence.complete = sequence.add(token)
        except BaseException as error:
            self._fail([sequence], error)

    def _leave(self) -> None:
        leaving = {index for index, row in enumerate(self.batch.rows) if row.sequence.leaves}
        for index in sorted(leaving):
            sequence = self.batch.rows[index].sequence
            sequence.finish()
            if sequence.started is not None:
                self.last_seconds = time.perf_counter() - sequence.started
            if sequence.future.exception() is None:
                self._keep(index)
        if leaving:
            self.batch.remove(leaving)
            self._short = False

    def _keep(self, index: int) -> None:
        sequence = self.batch.rows[index].sequence
        length = self.batch.computed(index) - sequence.request.input_ids.size
        answer = sequence.ids[:length]
        if len(answer) < length:
            return  # states of tokens that the host has not read are of no prefix that it knows
        try:
            self.prefixes.keep(sequence.request, answer, sequence.client, lambda: self.batch.layers(index))
        except (torch.OutOfMemoryError, MemoryError):
            self.prefixes.clear()

    # Failures.

    def _free_memory(self) -> None:
        self.prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fail(self, sequences: list[Sequence], error: BaseException) -> None:
        """Fail these requests; the engine continues."""
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            logger.error("out of memory with %d requests: %s", len(sequences), error)
            self._free_memory()
            error = OutOfMemoryError(
                "the server has no memory for this request", remedy="Send fewer or smaller pictures."
            )
        for sequence in sequences:
            sequence.fail(error)
