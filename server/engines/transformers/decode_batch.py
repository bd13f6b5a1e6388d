"""Requests that are decoded together: one row of the slab each, and one token each per step.

Rows may join and leave between any two steps. A row's positions do not depend on the others: text positions count its
own tokens, and M-RoPE adds its own delta. Each step's tokens stay on the device, where the next step needs them; the
host reads them later, so the device need not wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.transformers.captured_steps import CapturedSteps
from qwen3vl_edge.server.engines.transformers.decode_step import DecodeStep
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers, tokens_of
from qwen3vl_edge.server.engines.transformers.kv_cache.slab import KvSlab
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.launched import Launched
from qwen3vl_edge.server.engines.transformers.prefill import Prefilled
from qwen3vl_edge.server.engines.transformers.sampling.batch_sampler import BatchSampler
from qwen3vl_edge.server.engines.transformers.sequence import Sequence


@dataclass
class Row:
    """One request of the batch; `length` is its columns in use once all launched steps are done."""

    sequence: Sequence
    length: int


class DecodeBatch:
    """The slab, step inputs and sequences of a decode batch; belongs to the engine's thread.

    Args:
        max_rows: requests, at most.
        max_tokens: rows times columns of the slab, at most; a single request may exceed it.
        captured: what runs the steps as CUDA graphs; None to run them as they are.
    """

    def __init__(
        self, loaded: LoadedModel, max_rows: int, max_tokens: int, captured: CapturedSteps | None = None
    ) -> None:
        self.rows: list[Row] = []
        self.captured = captured
        self.slab = KvSlab(
            len(loaded.decoder_layers), max_tokens, loaded.recurrent_layers, loaded.state_tokens, max_rows
        )
        self._max_rows = max_rows
        self._step = DecodeStep(loaded, max_rows, captured)
        self._sampler = BatchSampler(loaded.device, loaded.vocabulary)
        self._launched: deque[Launched] = deque()

    @property
    def tokens(self) -> int:
        """Tokens in the KV cache, padding included."""
        return len(self.rows) * self._width

    @property
    def _width(self) -> int:
        return max((row.length for row in self.rows), default=0)

    def fits(self, sequences: list[Sequence]) -> bool:
        """Whether they may join."""
        rows = len(self.rows) + len(sequences)
        return rows <= self._max_rows and self.slab.fits(rows, self._most_columns(sequences))

    def reserve(self, sequences: list[Sequence]) -> None:
        """Make room for them in the slab.

        Raises:
            torch.OutOfMemoryError, RuntimeError: there is no memory for it; the rows go on as before.
        """
        if not self.rows and self.slab.exceeds_limit:
            self.slab.release()  # a single request made it larger than the limit
        lengths = [row.length for row in self.rows]
        try:
            self.slab.reserve(len(self.rows) + len(sequences), self._most_columns(sequences), lengths)
        except BaseException:
            if not self.rows:
                self.slab.release()  # some layers may have grown: no row needs that
            raise

    def join(self, sequences: list[Sequence], computed: list[Prefilled]) -> None:
        """Add requests after their prefill, and choose their first tokens; there is room for them."""
        first = len(self.rows)
        for sequence, result in zip(sequences, computed, strict=True):
            length = tokens_of(result.layers)
            self.slab.write(len(self.rows), result.layers)
            self._step.enter(len(self.rows), length, result.delta)
            self._sampler.add(sequence.request)
            self.rows.append(Row(sequence, length))
        self._choose(torch.stack([result.logits for result in computed]), first)

    def launch(self) -> None:
        """Start the step that gives every row its next token; there is room for one more in each."""
        logits = self._step.run(self.slab, len(self.rows), self._width + 1)
        for row in self.rows:
            row.length += 1
        self._choose(logits, 0)

    def arrived(self, under_way: int) -> Iterator[tuple[Sequence, Token | ArithmeticError]]:
        """The tokens of all launched steps but the last `under_way` ones."""
        while len(self._launched) > under_way:
            yield from self._launched.popleft().tokens()

    def computed(self, index: int) -> int:
        """Tokens of a row's prompt and answer that `layers` is of.

        States are those after all launched steps. The step that is under way when an answer ends has read its last
        token, and none that the host does not know.
        """
        row = self.rows[index]
        return row.length if self.slab.has_states else row.sequence.columns

    def layers(self, index: int) -> Layers:
        """A copy of what the layers keep of a row's prompt and answer, [1, heads, tokens, width], or states."""
        return self.slab.copy(index, self.computed(index))

    def layers_bytes(self, index: int) -> int:
        """Bytes of such a copy."""
        return self.computed(index) * self.slab.bytes_per_token + self.slab.bytes_per_row

    def remove(self, indices: set[int]) -> None:
        """Remove rows; the last ones take their places."""
        for index in sorted(indices, reverse=True):
            last = len(self.rows) - 1
            self.slab.clear(index, self.rows[index].length)
            if index != last:
                self.slab.move(last, index, self.rows[last].length)
                self._step.move(last, index)
                self._sampler.move(last, index)
                self.rows[index] = self.rows[last]
            self._step.leave(last)
            self._sampler.pop()
            self.rows.pop()

    def clear(self) -> list[Sequence]:
        """Remove and return all sequences, after a failed step too: what the device holds is given up."""
        sequences = [row.sequence for row in self.rows]
        self._launched.clear()
        self.rows = []
        while len(self._sampler):
            self._sampler.pop()
        self._step.lengths.zero_()
        self.slab.release()
        return sequences

    def make_room(self, sizes: list[tuple[int, int]]) -> None:
        """Make the slab's shape one for all of these rows and columns, where one may be: what is captured needs it."""
        rows, columns = (max(values) for values in zip(*sizes, strict=True))
        if self.slab.fits(rows, columns):
            self.slab.reserve(rows, columns, [])

    def capture(self, rows: int, columns: int) -> None:
        """Capture the step of this size while nobody waits; nothing where steps are not captured."""
        assert not self.rows
        if self.captured is not None:
            self.slab.reserve(rows, columns, [])
            self._step.capture(self.slab, rows, columns)

    def _most_columns(self, sequences: list[Sequence]) -> int:
        held = [row.sequence for row in self.rows]
        return max(sequence.tokens_at_most for sequence in (*held, *sequences))

    def _choose(self, logits: torch.Tensor, first: int) -> None:
        sequences = [row.sequence for row in self.rows[first:]]
        picked = self._sampler.pick(logits, first)
        self._step.ids[first : len(self.rows), 0] = picked.ids
        self._launched.append(Launched(sequences, picked))
