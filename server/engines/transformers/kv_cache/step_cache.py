"""A slab as transformers' cache, for one decode step.

transformers' `StaticLayer` writes all rows at one column, the count of tokens so far; here each row has its own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers, RecurrentStates


class StepLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of the slab: a step writes each row's new key and value at the end of the row.

    Args:
        keys, values: views [rows, heads, columns, width] of the slab.
        ends: int64 [rows], the column of each row's new token.
    """

    is_compileable = False
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, ends: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        rows, heads, _, width = keys.shape
        self._places = ends.to(keys.device).view(rows, 1, 1, 1).expand(rows, heads, 1, width)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the slab is there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [rows, heads, 1, width] in place; returns all columns."""
        self.keys.scatter_(2, self._places, key_states)
        self.values.scatter_(2, self._places, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns, and the first of them."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Columns before the step's; the step's own mask says which are in use."""
        return int(self.keys.shape[2]) - 1

    def get_max_length(self) -> int:
        """Columns."""
        return int(self.keys.shape[2])


class StepStates(LinearAttentionLayer):  # type: ignore[misc]
    """A recurrent layer of the slab: a step writes each row's next states in place of the present ones.

    Args:
        states: views of the slab; every row has seen a prompt.
    """

    def __init__(self, states: RecurrentStates) -> None:
        super().__init__()
        self.conv_states[0], self.recurrent_states[0] = states
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True
        self.has_previous_state[0] = True
        self.conv_kernel_size[0] = states.conv.shape[-1]
        self.dtype, self.device = states.conv.dtype, states.conv.device


def step_cache(views: Layers, ends: torch.Tensor) -> Cache:
    """The cache of one decode step over these views."""
    return Cache(
        layers=[StepStates(layer) if isinstance(layer, RecurrentStates) else StepLayer(*layer, ends) for layer in views]
    )
