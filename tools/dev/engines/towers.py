"""Draws vision towers as Qwen3-VL allows them, and small grids: sizes that a library may take for one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.export.onnx.activations import ACTIVATIONS

# Of the mergers' square matrices, so that a tower takes a second or two.
GELUS = ("gelu_pytorch_tanh", "gelu")  # what released towers have
WIDEST_MERGER = 3072


@dataclass(frozen=True)
class Tower:
    """One tower.

    Attributes:
        vision: values of `vision_config`.
        fixed: grids that get a graph of their own; the first is one merged token.
        free: grids for the dynamic-shape graph alone.
        precisions: fp32 always, fp16 of every third.
    """

    vision: dict[str, Any]
    precisions: tuple[str, ...]
    fixed: tuple[Grid, ...]
    free: tuple[Grid, ...]


def draw_tower(seed: int, index: int) -> Tower:
    """The tower of that index: heads 1 to 16, head widths 12 to 128, merges, patches, frames and depths mixed."""
    rng = np.random.default_rng([seed, index])
    merge, heads = int(rng.choice([2, 2, 2, 3])), int(rng.integers(1, 17))
    widest = WIDEST_MERGER // merge**2 // heads
    head_width = 4 * int(rng.integers(3, max(min(128, widest) // 4, 3) + 1))
    depth = int(rng.integers(1, 4))
    levels = [layer for layer in range(depth) if rng.random() < 0.5]
    vision = {
        "hidden_size": heads * head_width,
        "num_heads": heads,
        "intermediate_size": 4 * int(rng.integers(4, 160)),
        "depth": depth,
        "deepstack_visual_indexes": levels,
        "out_hidden_size": 8 * int(rng.integers(2, 24)),
        "patch_size": int(rng.choice([4, 8, 14, 16])),
        "spatial_merge_size": merge,
        "temporal_patch_size": int(rng.integers(1, 3)),
        "num_position_embeddings": int(rng.integers(4, 49)) ** 2,
        "hidden_act": str(rng.choice(GELUS)),
    }
    # Drawn apart, so that a tower's sizes stay those of its index.
    others = np.random.default_rng([seed, index, 1])
    vision["deepstack_visual_indexes"] = others.permutation(levels).tolist()
    if others.random() < 0.5:
        vision["hidden_act"] = str(others.choice(list(ACTIVATIONS)))
    fixed = [Grid(1, merge, merge), *_as_many_patches_as_heads(rng, heads, merge)]
    fixed += [_grid(rng, 1, merge, 4), _grid(rng, int(rng.integers(2, 4)), merge, 2)]
    free = [_grid(rng, int(rng.integers(1, 3)), merge, 4)]
    precisions = ("fp32", "fp16")[: 2 if index % 3 == 0 else 1]
    return Tower(vision, precisions, tuple(dict.fromkeys(fixed)), tuple(grid for grid in free if grid not in fixed))


def _grid(rng: np.random.Generator, t: int, merge: int, longest: int) -> Grid:
    h, w = (merge * int(rng.integers(1, longest + 1)) for _ in range(2))
    return Grid(t, h, w)


def _as_many_patches_as_heads(rng: np.random.Generator, heads: int, merge: int) -> list[Grid]:
    """A picture or clip whose frames have as many patches as there are heads, where merge blocks allow it."""
    sides = [(h, heads // h) for h in range(merge, heads + 1, merge) if heads % h == 0 and heads // h % merge == 0]
    return [Grid(int(rng.integers(1, 3)), *sides[int(rng.integers(len(sides)))])] if sides else []
