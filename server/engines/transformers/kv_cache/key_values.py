"""What every layer keeps of a prompt and its answer, as it moves between prefill, slab and prefix cache.

An attention layer keeps keys and values of each token. A recurrent layer (Gated DeltaNet, three of four layers of
Qwen3.5) keeps two states of fixed size, which are those after the last token: they can be continued, but not shortened.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin


class RecurrentStates(NamedTuple):
    """States of a recurrent layer after some tokens.

    Attributes:
        conv: [rows, channels, kernel], what the causal convolution still sees of the last tokens.
        recurrent: float32 [rows, heads, key width, value width].
    """

    conv: torch.Tensor
    recurrent: torch.Tensor


Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each layer, its keys and values, [rows, heads, tokens, width], or its `RecurrentStates`."""


def layers_of(cache: DynamicCache) -> Layers:
    """What a cache holds, without copying."""
    return [
        RecurrentStates(layer.conv_states[0], layer.recurrent_states[0])
        if isinstance(layer, LinearAttentionCacheLayerMixin)
        else (layer.keys, layer.values)
        for layer in cache.layers
    ]


def cache_of(layers: Layers, config: object) -> DynamicCache:
    """A cache that continues them; they stay as they are.

    Args:
        config: of the model.
    """
    keys = [(None, None) if isinstance(layer, RecurrentStates) else layer for layer in layers]
    cache = DynamicCache(keys, config=config)
    for index, layer in enumerate(layers):
        if isinstance(layer, RecurrentStates):
            cache.update_conv_state(layer.conv, index, conv_kernel_size=layer.conv.shape[-1])
            cache.update_recurrent_state(layer.recurrent, index)
    return cache


def have_states(layers: Layers) -> bool:
    """Whether a layer of the model is recurrent: then nothing but all of its tokens can be continued."""
    return any(isinstance(layer, RecurrentStates) for layer in layers)


def tokens_of(layers: Layers) -> int:
    """Tokens whose keys and values these are."""
    return next(layer[0].shape[2] for layer in layers if not isinstance(layer, RecurrentStates))


def row_of(layers: Layers, row: int, start: int) -> Layers:
    """One row without its padding on the left, as views [1, heads, tokens, width]; no state has seen the padding."""
    return [
        RecurrentStates(layer.conv[row : row + 1], layer.recurrent[row : row + 1])
        if isinstance(layer, RecurrentStates)
        else (layer[0][row : row + 1, :, start:], layer[1][row : row + 1, :, start:])
        for layer in layers
    ]


def first_tokens(layers: Layers, length: int) -> Layers:
    """Views of the first tokens; with states, of all of them."""
    assert not have_states(layers) or length == tokens_of(layers)
    return [
        layer if isinstance(layer, RecurrentStates) else (layer[0][:, :, :length], layer[1][:, :, :length])
        for layer in layers
    ]
