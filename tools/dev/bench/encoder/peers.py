"""Every row of the encoder bench."""

from __future__ import annotations

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.tools.dev.bench.encoder import openvino_converter, ours, pytorch, upstream
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Peer, Pixels


def all_peers(bundle: Bundle, model: bool) -> list[Peer]:
    """Ours, and with a checkpoint the others."""
    others = [*pytorch.peers(), *upstream.peers(), *openvino_converter.peers()] if model else []
    return [*others, *ours.peers(bundle)]


def pixels_of(grid: Grid, patch_values: int) -> Pixels:
    """The picture that every candidate encodes: float32 [patches, patch_values]."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((grid.patches, patch_values)).astype(np.float32)
