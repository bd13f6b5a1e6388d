"""Tiny encoders with values that float16 cannot hold, and which layers those are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from qwen3vl_edge.tools.dev.random_checkpoint import RandomCheckpoint, encoder_checkpoint

Tensors = dict[str, Any]


def rows(linear: str, factor: float = 1e5) -> Callable[[Tensors], None]:
    """Three outputs of a linear, `factor` times as large: the weights still fit float16."""

    def plant(tensors: Tensors) -> None:
        for part in ("weight", "bias"):
            tensors[f"{linear}.{part}"][3:6] *= factor

    return plant


def norm_output(tensors: Tensors) -> None:
    """The function is unchanged: what the norm multiplies, the linear after it divides."""
    tensors["blocks.2.norm2.weight"][5] *= 1e5
    tensors["blocks.2.norm2.bias"][5] *= 1e5
    tensors["blocks.2.mlp.linear_fc1.weight"][:, 5] /= 1e5


def scores(tensors: Tensors) -> None:
    """Queries and keys fit, their products do not."""
    tensors["blocks.1.attn.qkv.weight"][:96] *= 200


def values(tensors: Tensors) -> None:
    tensors["blocks.1.attn.qkv.weight"][100] *= 1e5


# Per plant, the layers that cannot be float16.
PLANTS = {
    "residual": (rows("blocks.1.mlp.linear_fc2"), {"blocks.1.mlp.linear_fc2"}),
    "last block": (rows("blocks.3.mlp.linear_fc2"), {"blocks.3.mlp.linear_fc2"}),
    "inside the MLP": (rows("blocks.1.mlp.linear_fc1"), {"blocks.1.mlp.linear_fc1", "blocks.1.mlp.linear_fc2"}),
    "norm": (norm_output, {"blocks.2.mlp.linear_fc1"}),
    "scores": (scores, {"blocks.1.attn.scores"}),
    "values": (values, {"blocks.1.attn.qkv", "blocks.1.attn.scores", "blocks.1.attn.proj"}),
    "patches": (rows("patch_embed.proj"), {"patch_embed.proj"}),
    "weights": (rows("blocks.0.attn.proj", 1e6), {"blocks.0.attn.proj"}),
    "embeddings": (rows("merger.linear_fc2"), {"merger.linear_fc2"}),
}


def planted(folder: Path, plant: Callable[[Tensors], None]) -> RandomCheckpoint:
    """A tiny checkpoint with some weights changed."""
    checkpoint = encoder_checkpoint(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    names = {name.removeprefix("model.visual."): value for name, value in tensors.items()}
    plant(names)
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint.encoder.load_state_dict(names)
    return checkpoint
