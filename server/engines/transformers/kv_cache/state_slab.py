"""The states of one recurrent layer for the decode batch: a row for each request, written in place.

A state has no columns: a step reads a row's state and writes the next in its place. So a step that runs twice changes
the states twice, where keys and values are just written again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import RecurrentStates


class StateSlab:
    """Memory of `rows` rows, made as the first states are; what no row uses is cleared when its request leaves."""

    def __init__(self) -> None:
        self.rows = 0
        self._states: RecurrentStates | None = None
        self._like: RecurrentStates | None = None  # one row, once its shapes, dtypes and devices are known

    @property
    def nbytes(self) -> int:
        """Bytes of its memory; any thread may ask."""
        states = self._states
        return 0 if states is None else sum(state.nbytes for state in states)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row; 0 before the first states."""
        return 0 if self._like is None else sum(state[0].nbytes for state in self._like)

    def release(self) -> None:
        """Give its memory back; no row is in use."""
        self.rows, self._states = 0, None

    def reserve(self, rows: int, used: int) -> None:
        """Make room for so many rows, or less than there was; the first `used` ones keep their states.

        Raises:
            torch.OutOfMemoryError: there is no memory for it; the rows are as before.
        """
        if self._states is None and self._like is not None:
            self._states = RecurrentStates(*(_zeros(state, rows) for state in self._like))
        elif self._states is not None and rows != self.rows:
            held = self._states
            made = RecurrentStates(*(_zeros(state, rows) for state in held))
            for new, old in zip(made, held, strict=True):
                new[:used].copy_(old[:used])
            self._states = made
        self.rows = rows

    def write(self, row: int, states: RecurrentStates) -> None:
        """Copy states [1, ...] to a row."""
        if self._states is None:
            self._like = RecurrentStates(*(_zeros(state, 1) for state in states))
            self._states = RecurrentStates(*(_zeros(state, self.rows) for state in states))
        for slab, state in zip(self._states, states, strict=True):
            slab[row].copy_(state[0])

    def view(self, rows: int) -> RecurrentStates:
        """The first rows, without copying."""
        assert self._states is not None
        return RecurrentStates(self._states.conv[:rows], self._states.recurrent[:rows])

    def copy(self, row: int) -> RecurrentStates:
        """A copy of a row, [1, ...]."""
        return RecurrentStates(*(state[row:].clone() for state in self.view(row + 1)))

    def clear(self, row: int) -> None:
        """Clear a row."""
        for state in self.view(row + 1):
            state[row].zero_()

    def move(self, source: int, target: int) -> None:
        """Copy one row to another, and clear the first."""
        for state in self.view(max(source, target) + 1):
            state[target].copy_(state[source])
            state[source].zero_()

    @contextmanager
    def unchanged(self, rows: int) -> Iterator[None]:
        """What the context does to the first rows is undone."""
        before = [state.clone() for state in self.view(rows)]
        try:
            yield
        finally:
            for state, held in zip(self.view(rows), before, strict=True):
                state.copy_(held)


def _zeros(like: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.zeros(rows, *like.shape[1:], dtype=like.dtype, device=like.device)
