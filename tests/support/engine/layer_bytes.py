"""Bytes of what layers hold."""

from __future__ import annotations

from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers


def layers_bytes(layers: Layers) -> int:
    """Of keys, values and states."""
    return sum(one.nbytes + other.nbytes for one, other in layers)
