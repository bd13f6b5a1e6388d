"""The KV cache of the decode batch: memory made once, seen as rows x columns, written in place.

Every request has a row, and its token `i` is in column `i`; columns beyond its length are masked. Nothing is copied per
token. Rows and columns share one piece of memory per layer: with longer rows there are fewer. A change of that shape
copies what is in use once, and more memory is made only while the limit allows it.

Recurrent layers keep a row of states for each request instead (`state_slab.py`), whatever its length.

What no row uses is finite: memory begins as zeros, and a row that leaves is cleared. Masked columns have weight zero,
but zero times infinity, which one request's embeddings may lead to, would reach the next request in that row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers, RecurrentStates
from qwen3vl_edge.server.engines.transformers.kv_cache.sizes import rows_for, slab_columns, slab_tokens
from qwen3vl_edge.server.engines.transformers.kv_cache.state_slab import StateSlab


class KvSlab:
    """Keys and values, or states, of all layers; belongs to the engine's thread.

    Args:
        layers: layers of the model.
        max_tokens: rows times columns, at most; a single row may exceed it.
        recurrent: which of the layers keep states.
        row_tokens: tokens whose keys and values are as many bytes as one row's states, which count as so many columns.
        max_rows: rows that there ever are, for the states.
    """

    def __init__(
        self, layers: int, max_tokens: int, recurrent: Collection[int] = (), row_tokens: int = 0, max_rows: int = 1
    ) -> None:
        self.max_tokens = max_tokens
        self._recurrent = recurrent
        self._row_tokens = row_tokens
        self._max_rows = max_rows
        self._make(layers)
        self._tokens = 0  # what memory is made for when the first row tells its shape
        self._memories = 0

    @property
    def columns(self) -> int:
        """Tokens that each row has room for."""
        return min(layer.columns for layer in self._layers)

    @property
    def rows(self) -> int:
        """Rows that there is room for."""
        return min(slab.rows for slab in self._slabs)

    @property
    def nbytes(self) -> int:
        """Bytes of its memory; any thread may ask."""
        return sum(slab.nbytes for slab in self._slabs)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers that have them; there has been a `write`."""
        return sum(layer.bytes_per_token for layer in self._layers)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row's states; there has been a `write`."""
        return sum(slab.bytes_per_row for slab in self._states)

    @property
    def exceeds_limit(self) -> bool:
        """Whether any layer has memory for more than `max_tokens`."""
        return max(layer.tokens for layer in self._layers) > self.max_tokens

    @property
    def has_states(self) -> bool:
        """Whether a layer keeps states: then a row holds what all of its steps have left, and nothing less."""
        return bool(self._states)

    @property
    def place(self) -> tuple[int, int]:
        """Which memory it is, and its shape: a step that was captured for one place does not run on another."""
        return self._memories, self.columns

    def fits(self, rows: int, columns: int) -> bool:
        """Whether so many rows may be so long."""
        return rows == 1 or rows * (columns + self._row_tokens) <= self.max_tokens

    def reserve(self, rows: int, columns: int, lengths: Sequence[int]) -> None:
        """Make room, and keep what the present rows hold. While it grows, one layer at a time has its memory twice.

        Args:
            rows, columns: what there must be room for; `fits` is true of them.
            lengths: columns in use of each present row.

        Raises:
            torch.OutOfMemoryError, RuntimeError: there is no memory for it; the present rows are intact.
        """
        if rows <= self.rows and columns <= self.columns:
            return
        tall = self._state_rows(rows, columns)
        limit = self.max_tokens - tall * self._row_tokens
        wide = slab_columns(rows, columns, limit)
        tokens = max(min(self._tokens, limit), slab_tokens(rows * wide, limit))
        if tokens != self._tokens or any(slab.rows != tall for slab in self._states):
            self._memories += 1
            if not lengths:
                self.release()  # nothing to copy, so not twice the memory either
        try:
            for layer in self._layers:
                layer.arrange(wide, tokens, lengths)
            for slab in self._states:
                slab.reserve(tall, len(lengths))
        except BaseException:
            self._memories += 1  # layers differ now, each whole
            raise
        self._tokens = tokens

    def write(self, row: int, layers: Layers) -> None:
        """Copy keys and values [1, heads, tokens, width] to the first columns of a row, and states [1, ...] to it."""
        for slab, layer in zip(self._slabs, layers, strict=True):
            if isinstance(slab, StateSlab):
                slab.write(row, RecurrentStates(*layer))
                continue
            keys, values = layer
            slab.make(keys)
            end = keys.shape[2]
            seen = slab.view(row + 1, end)
            seen[0, row].copy_(keys[0])
            seen[1, row].copy_(values[0])

    def views(self, rows: int, columns: int) -> Layers:
        """The first rows and columns of each layer, and the first rows of states, without copying."""
        found: Layers = []
        for slab in self._slabs:
            if isinstance(slab, StateSlab):
                found.append(slab.view(rows))
            else:
                seen = slab.view(rows, columns)
                found.append((seen[0], seen[1]))
        return found

    def copy(self, row: int, length: int) -> Layers:
        """A copy of a row's first columns, [1, heads, length, width], and of its states."""
        return [slab.copy(row) if isinstance(slab, StateSlab) else slab.copy(row, length) for slab in self._slabs]

    @contextmanager
    def states_unchanged(self, rows: int) -> Iterator[None]:
        """A step within the context leaves the states of the first rows as they were before."""
        with ExitStack() as stack:
            for slab in self._states:
                stack.enter_context(slab.unchanged(rows))
            yield

    def clear(self, row: int, length: int) -> None:
        """Clear a row that used so many columns."""
        for layer in self._layers:
            layer.view(row + 1, length)[:, row].zero_()
        for slab in self._states:
            slab.clear(row)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the columns in use of one row to another, which is clear, and clear the first."""
        for layer in self._layers:
            seen = layer.view(max(source, target) + 1, length)
            seen[:, target].copy_(seen[:, source])
            seen[:, source].zero_()
        for slab in self._states:
            slab.move(source, target)

    def release(self) -> None:
        """Give its memory back; no row is in use."""
        for slab in self._slabs:
            slab.release()
        self._tokens = 0
        self._memories += 1

    def _make(self, layers: int) -> None:
        self._layers = [_LayerSlab() for index in range(layers) if index not in self._recurrent]
        self._states = [StateSlab() for index in range(layers) if index in self._recurrent]
        attention, recurrent = iter(self._layers), iter(self._states)
        self._slabs: list[_LayerSlab | StateSlab] = [
            next(recurrent) if index in self._recurrent else next(attention) for index in range(layers)
        ]

    def _state_rows(self, rows: int, columns: int) -> int:
        """Rows of states to make: a power of two, or just what is needed where that exceeds the limit."""
        present = max((slab.rows for slab in self._states), default=0)
        tall = max(present, rows_for(rows, self._max_rows))
        return tall if tall * self._row_tokens + rows * columns <= self.max_tokens else rows


class _LayerSlab:
    """One layer's memory, [2, tokens * heads * width]: keys, then values.

    Heads, width, dtype and device are those of the first keys: with a `device_map`, layers are on several devices.
    """

    def __init__(self) -> None:
        self.memory: torch.Tensor | None = None
        self.columns = 0
        self.tokens = 0
        self._heads = self._width = 0
        self._like: torch.Tensor | None = None  # an empty one, once its keys' dtype and device are known

    @property
    def rows(self) -> int:
        return self.tokens // self.columns if self.columns else 0

    @property
    def bytes_per_token(self) -> int:
        return 0 if self._like is None else 2 * self._heads * self._width * self._like.itemsize

    @property
    def nbytes(self) -> int:
        memory = self.memory  # which another thread may be replacing
        return 0 if memory is None else memory.nbytes

    def make(self, keys: torch.Tensor) -> None:
        """Make its memory for keys like these, once."""
        if self.memory is None:
            _, self._heads, _, self._width = keys.shape
            self._like = keys.new_empty(0)
            self.memory = self._zeros(self._like, self.tokens)

    def view(self, rows: int, columns: int) -> torch.Tensor:
        """[2, rows, heads, columns, width]."""
        assert self.memory is not None
        row = self._heads * self.columns * self._width
        whole = self.memory[:, : rows * row].view(2, rows, self._heads, self.columns, self._width)
        return whole[:, :, :, :columns]

    def copy(self, row: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of a row's first keys and values, [1, heads, columns, width]."""
        keys, values = self.view(row + 1, columns)[:, row:].clone()
        return keys, values

    def arrange(self, columns: int, tokens: int, lengths: Sequence[int]) -> None:
        """Change the shape, and the memory if it is for fewer or more; the rows in use keep their columns in use."""
        if self.memory is None:
            # Before the first keys it is not known of what: then it is made with them.
            self.memory = None if self._like is None else self._zeros(self._like, tokens)
            self.columns, self.tokens = columns, tokens
            return
        if (columns, tokens) == (self.columns, self.tokens):
            return
        made = self._zeros(self.memory, tokens) if tokens != self.tokens else None
        held = [self.view(row + 1, length)[:, row].clone() for row, length in enumerate(lengths)]
        if made is None:
            for row, length in enumerate(lengths):
                self.view(row + 1, length)[:, row].zero_()
        else:
            self.memory, self.tokens = made, tokens
        self.columns = columns
        for row, values in enumerate(held):
            self.view(row + 1, values.shape[2])[:, row].copy_(values)

    def release(self) -> None:
        self.memory = None
        self.columns = self.tokens = 0

    def _zeros(self, like: torch.Tensor, tokens: int) -> torch.Tensor:
        return torch.zeros(2, tokens * self._heads * self._width, dtype=like.dtype, device=like.device)
