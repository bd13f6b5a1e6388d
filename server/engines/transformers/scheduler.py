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
from collections.abc import Iterable

import torch

from qwen3vl_edge.server.engines.fair_queue import FairQueue
from qwen3vl_edge.server.engines.protocol import EngineDiedError, Token
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.between_layers import between_layers
from qwen3vl_edge.server.engines.transformers.captured_steps import captured_steps
from qwen3vl_edge.server.engines.transformers.decode_batch import DecodeBatch
from qwen3vl_edge.server.engines.transformers.endings import Endings
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers, tokens_of
from qwen3vl_edge.server.engines.transformers.kv_cache.prefix_cache import PrefixCache
from qwen3vl_edge.server.engines.transformers.kv_cache.sizes import capture_order
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.out_of_memory import is_out_of_memory
from qwen3vl_edge.server.engines.transformers.pace import Pace
from qwen3vl_edge.server.engines.transformers.prefill import Prefilled, prefill, prefill_together
from qwen3vl_edge.server.engines.transformers.sequence import Sequence
from qwen3vl_edge.server.errors import ShuttingDownError

logger = logging.getLogger("server")

TOGETHER_TOKENS = 2048  # of prompts that are computed together, padding included, while no answer is under way
PADDING = 0.25  # of their tokens, at most


_Found = tuple[Sequence, Layers | None]  # a request, and the keys and values of a prefix of its prompt


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
            None without one.
        dead: the device fails at everything, so that no request will ever be answered. Any thread may read these.
    """

    def __init__(self, loaded: LoadedModel, options: BatchOptions, queue: FairQueue[Sequence]) -> None:
        captured = captured_steps(loaded, options.capture)
        self.batch = DecodeBatch(loaded, options.max_batch, options.max_batch_tokens, captured)
        self.prefixes = PrefixCache(loaded.shape, options.prefix_bytes, options.prefix_s)
        self.steps = self.step_rows = self.reused_tokens = 0
        self.last_seconds = 1.0
        self.progress: float | None = None
        self.dead = False
        self.captured = threading.Event()
        self._endings = Endings(loaded.device, self.prefixes)
        self._loaded = loaded
        self._queue = queue
        self._max_rows = options.max_batch
        self._pace = Pace(len(loaded.decoder_layers))
        # Steps that may run before their tokens are read.
        self._ahead = 1 if captured is not None or loaded.device.type == "cuda" else 0
        self._held_back: deque[Sequence] = deque()  # taken from the queue, wait for room in the batch
        self._taken: list[Sequence] = []  # from the queue in this turn, and not held back
        self._computing: list[Sequence] = []  # those of them that are in prefill
        self._in_between = False  # steps run between the layers of the current prefill
        self._short = False  # of memory for more rows, until one leaves
        self._step_seconds = 0.0
        self._steady = False  # the last call of the model was a step whose tokens are read with the next one's
        self._closing = False
        self._captures = deque(capture_order(options.capture_sizes if captured is not None else ()))

    @property
    def waiting(self) -> int:
        """Requests that were taken from the queue and wait for room; any thread may ask."""
        return len(self._held_back) + max(0, len(self._taken) - len(self._computing))

    @property
    def under_way(self) -> list[Sequence]:
        """Requests that were taken from the queue; any thread may ask."""
        return [*self._taken, *list(self._held_back), *(row.sequence for row in list(self.batch.rows))]

    @property
    def running(self) -> int:
        """Requests in prefill or decode; any thread may ask."""
        return len(self.batch.rows) + len(self._computing)

    def close(self) -> None:
        """End a prefill at its next layer; any thread may call it."""
        self._closing = True

    @torch.inference_mode()
    def turn(self) -> None:
        """Wait for requests if there are none; then compute prompts that fit, and one step.

        Whatever it meets, nobody waits in vain: it raises nothing, and is `dead` where it cannot go on.
        """
        try:
            if not self.batch.rows and not self._held_back and not self._capture_next():
                self.prefixes.expire()
                self._queue.wait(1.0)
            self._admit()
            self._step()
        except BaseException as error:
            logger.exception("the engine failed outside of any request; those under way fail")
            self._survive(error)

    def stop(self) -> None:
        """End everything."""
        for sequence in self._held_back:
            sequence.fail(EngineDiedError() if self.dead else ShuttingDownError())
        for row in self.batch.rows:
            self._endings.finish(row.sequence)
        self.captured.set()
        if not self.dead:
            self.batch.clear()

    def _survive(self, error: BaseException) -> None:
        try:
            self._fail_batch(error, self._taken)
        except BaseException as last:
            logger.critical("the engine has died: %s", last)
            self.dead = True
            for sequence in self.under_way:
                sequence.fail(EngineDiedError())
        finally:
            self._taken = []

    def _capture_next(self) -> bool:
        """Capture one of the sizes that the options name, once the first request has shown the model's shapes."""
        if not self._captures:
            self.captured.set()
        if not self._captures or self.batch.slab.nbytes == 0:
            return False
        sizes, (rows, columns) = list(self._captures), self._captures.popleft()
        try:
            self.batch.make_room(sizes)
            self.batch.capture(rows, columns)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("no memory to capture a decode step of %dx%d", rows, columns)
            self._endings.free_memory()
        return True

    # Prefill.

    def _admit(self) -> None:
        for sequence in [item for item in self._held_back if item.over]:
            self._held_back.remove(sequence)
            self._endings.finish(sequence)
        if self._short and self.batch.rows:
            return
        self._short = False
        if found := self._reserve(self._take()):
            self._compute(found)
        self._taken = []

    def _take(self) -> list[_Found]:
        """The next requests that fit and are computed together, with their cached prefixes."""
        found: list[_Found] = []
        while (sequence := self._held_back.popleft() if self._held_back else self._queue.take()) is not None:
            group, self._taken = self._taken, [*self._taken, sequence]
            if sequence.over:
                self._taken = group
                self._endings.finish(sequence)
                continue
            if not self.batch.fits([*group, sequence]):
                self._hold_back([sequence])
                break
            try:
                held = self._cached(sequence)
            except BaseException as error:
                self._taken = group
                self._endings.fail([sequence], error)
                continue
            if found and (held is not None or not self._together([*group, sequence])):
                self._hold_back([sequence])
                break
            found.append((sequence, held))
            if held is not None:
                break
        return found

    def _hold_back(self, sequences: list[Sequence]) -> None:
        """Return taken requests to the head of those that wait, in their order."""
        self._held_back.extendleft(reversed(sequences))
        self._taken = [sequence for sequence in self._taken if sequence not in sequences]

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

    def _reserve(self, found: list[_Found]) -> list[_Found]:
        """Make room for as many of these, from the first on, as there is memory for.

        The others wait. A request fails for which there is no memory although nothing else holds any.
        """
        while found:
            group = [sequence for sequence, _ in found]
            if (error := self._memory_for(group)) is None:
                break
            held = self.prefixes.nbytes or any(prefix is not None for _, prefix in found)
            found = [(sequence, None) for sequence in group]
            self._endings.free_memory()
            if held:
                continue
            self._short = True
            if len(group) > 1:
                found = found[: len(group) // 2]
            elif self.batch.rows:
                found = []
            else:
                self._taken = []
                self._endings.fail(group, error)
                return []
            self._hold_back(group[len(found) :])
            logger.warning("no memory for %d more requests: %d wait", len(group), len(group) - len(found))
        return found

    def _memory_for(self, group: list[Sequence]) -> BaseException | None:
        """Reserve room for these; the error if there is no memory for it, without what its frames hold."""
        try:
            self.batch.reserve(group)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)
        return None

    def _compute(self, found: list[_Found]) -> None:
        group = [sequence for sequence, _ in found]
        for sequence in group:
            sequence.begin()
        self._computing, self.progress = group, time.perf_counter()
        short: BaseException | None = None
        try:
            self._join(group, self._prefill(found))
        except _AbandonedError:
            for sequence in group:
                self._endings.finish(sequence)
        except BaseException as error:
            if not is_out_of_memory(error):
                self._endings.fail(group, error)
            else:
                short = error.with_traceback(None)  # its frames hold what there was no memory for more of
        finally:
            self._computing, self.progress, self._steady = [], None, False
        if short is not None and len(found) == 1:
            self._endings.fail(group, short)
        elif short is not None:  # there may be enough for each alone
            self._endings.free_memory()
            for item in found:
                self._compute([item])

    def _prefill(self, found: list[_Found]) -> list[Prefilled]:
        requests = [sequence.request for sequence, _ in found]
        sequence, held = found[0]
        reused = sequence.reused_tokens = 0 if held is None else tokens_of(held)
        self.reused_tokens += reused
        tokens = sum(request.input_ids.size for request in requests) - reused
        self._in_between = self._pace.is_long(tokens) and self._well_filled
        self._endings.wait_for_device()  # what a step is still doing is not this prefill's time
        began, stepped = time.perf_counter(), self._step_seconds
        with between_layers(self._loaded, self._between_layers):
            if len(found) > 1:
                computed = prefill_together(requests, self._loaded)
            else:
                computed = [prefill(requests[0], self._loaded, held, self._most_tokens)]
            self._endings.wait_for_device()
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
        if self._in_between and self.batch.rows:
            self._endings.wait_for_device()  # else many layers are launched ahead, and a step waits for all of them
            if self._pace.due:
                self._step(ahead=0)
            self.progress = time.perf_counter()

    def _join(self, group: list[Sequence], computed: list[Prefilled]) -> None:
        try:
            self.batch.reserve(group)  # once more, for a step that failed in the meantime gave the memory back
            self.batch.join(group, computed)
        except BaseException as error:
            self._fail_batch(error, group)

    # Decode.

    def _step(self, ahead: int | None = None) -> None:
        """One token for every answer under way; those that are over leave.

        Args:
            ahead: steps that may be left under way; None for as many as the device allows.
        """
        began = self.progress = time.perf_counter()
        try:
            if any(row.sequence.exhausted for row in self.batch.rows):
                self._read(0)
            self._leave()
            if not self.batch.rows:
                self._read(0)
                return
            self.batch.launch()
            self.steps += 1
            self.step_rows += len(self.batch.rows)
            self._read(self._ahead if ahead is None else ahead)
            self._leave()
        except BaseException as error:
            self._fail_batch(error)
            return
        finally:
            self.progress = None
        seconds = time.perf_counter() - began
        self._step_seconds += seconds
        # A step whose tokens are not read yet takes as long as it waits for the one before, if it does.
        waited = self._steady or not (self._ahead if ahead is None else ahead)
        self._pace.stepped(seconds if waited else None)
        self._steady = True

    def _read(self, under_way: int) -> None:
        """Hand over the tokens of all launched steps but the last `under_way`."""
        for sequence, token in self.batch.arrived(under_way):
            if isinstance(token, Token):
                self._advance(sequence, token)
            else:
                self._endings.fail([sequence], token)

    def _advance(self, sequence: Sequence, token: Token) -> None:
        try:
            sequence.complete = sequence.add(token)
        except BaseException as error:
            self._endings.fail([sequence], error)

    def _leave(self) -> None:
        leaving = {index for index, row in enumerate(self.batch.rows) if row.sequence.leaves}
        for index in sorted(leaving):
            sequence = self.batch.rows[index].sequence
            self._endings.finish(sequence)
            if sequence.started is not None:
                self.last_seconds = time.perf_counter() - sequence.started
            if sequence.future.exception() is None:
                self._endings.keep(self.batch, index)
        if leaving:
            self.batch.remove(leaving)
            self._short = False

    # Failures.

    def _fail_batch(self, error: BaseException, others: Iterable[Sequence] = ()) -> None:
        """Fail all rows and these, and begin with an empty batch."""
        self._endings.fail([*(row.sequence for row in self.batch.rows), *others], error)
        self.batch.clear()
