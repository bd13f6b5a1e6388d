"""Keys and values of every layer, as they move between prefill, slab and prefix cache."""

from __future__ import annotations

import torch
from transformers import DynamicCache

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, [rows, heads, tokens, width]."""


def layers_of(cache: DynamicCache) -> Layers:
    """The keys and values of a cache, without copying."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def row_of(layers: Layers, row: int, start: int) -> Layers:
    """One row without its padding on the left, as views [1, heads, tokens, width]."""
    return [(keys[row : row + 1, :, start:], values[row : row + 1, :, start:]) for keys, values in layers]
