"""Requests that are decoded together: keys and values in one cache, one token each per step.

Rows are padded on the left, so that all end in the same column; padding is masked and does not affect the results.
A row's positions do not depend on its padding: text positions count its own tokens, and M-RoPE adds its own delta.
Rows may join and leave between any two steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.sequence import Sequence

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, [rows, heads, tokens, width]."""


@dataclass
class Row:
    """One request of the batch.

    Attributes:
        length: tokens in the KV cache.
        delta: offset of M-RoPE positions from the token count (`rope_deltas`).
    """

    sequence: Sequence
    length: int
    delta: int


class DecodeBatch:
    """The KV cache and sequences of a decode batch; belongs to the engine's thread."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.rows: list[Row] = []
        self._loaded = loaded
        self._cache: DynamicCache | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the KV cache, padding included."""
        return len(self.rows) * self._width

    @property
    def _width(self) -> int:
        return max((row.length for row in self.rows), default=0)

    def add(self, sequence: Sequence, layers: Layers, delta: int) -> None:
        """Add a request after its prefill.

        Args:
            layers: the prompt's keys and values, [1, heads, tokens, width].
        """
        length = layers[0][0].shape[2]
        width = max(length, self._width)
        if self._cache is None:
            joined = layers
        else:
            held = _padded(layers_of(self._cache), width - self._width)
            joined = _joined(held, _padded(layers, width - length))
        self._cache = DynamicCache(joined)
        self.rows.append(Row(sequence, length, delta))

    @torch.inference_mode()
    def step(self) -> torch.Tensor:
        """Logits [rows, vocabulary] after each row's last token, whose keys and values are added to the cache."""
        device = self._loaded.device
        last = torch.tensor([[row.sequence.ids[-1]] for row in self.rows], device=device)
        lengths = torch.tensor([row.length for row in self.rows], device=device)
        deltas = torch.tensor([row.delta for row in self.rows], device=device)
        text = lengths[:, None]
        positions = torch.stack([text, *[text + deltas[:, None]] * 3])
        columns = torch.arange(self._width + 1, device=device)
        mask = (columns[None] >= self._width - lengths[:, None]).long()
        outputs = self._loaded.model(
            input_ids=last, attention_mask=mask, position_ids=positions, cache=self._cache, use_cache=True
        )
        for row in self.rows:
            row.length += 1
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits

    def layers(self, index: int) -> Layers:
        """A copy of one row's keys and values without padding, [1, heads, tokens, width]."""
        assert self._cache is not None
        start = self._width - self.rows[index].length
        layers = layers_of(self._cache)
        row = slice(index, index + 1)
        return [(keys[row, :, start:].clone(), values[row, :, start:].clone()) for keys, values in layers]

    def remove(self, indices: set[int]) -> None:
        """Remove rows, and the padding that only they needed."""
        if not indices:
            return
        width = self._width
        remaining = [index for index in range(len(self.rows)) if index not in indices]
        self.rows = [self.rows[index] for index in remaining]
        if not remaining:
            self._cache = None
            return
        assert self._cache is not None
        start = width - self._width
        self._cache = DynamicCache(
            [(keys[remaining, :, start:], values[remaining, :, start:]) for keys, values in layers_of(self._cache)]
        )

    def clear(self) -> list[Sequence]:
        """Remove and return all sequences."""
        sequences = [row.sequence for row in self.rows]
        self.rows, self._cache = [], None
        return sequences


def layers_of(cache: DynamicCache) -> Layers:
    """The keys and values of a cache, without copying."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def layers_bytes(layers: Layers) -> int:
    """Bytes of keys and values."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)


def _padded(layers: Layers, columns: int) -> Layers:
    if columns == 0:
        return layers
    return [(pad(keys, (0, 0, columns, 0)), pad(values, (0, 0, columns, 0))) for keys, values in layers]


def _joined(first: Layers, second: Layers) -> Layers:
    pairs = zip(first, second, strict=True)
    return [
        (torch.cat([keys, new_keys]), torch.cat([values, new_values]))
        for (keys, values), (new_keys, new_values) in pairs
    ]
