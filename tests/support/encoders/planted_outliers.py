"""A checkpoint whose encoder computes the same with a few channels far larger than the others, as large towers have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

# Within 50 to 200, and powers of two: no weight loses a bit.
FACTORS = {3: 64.0, 17: 128.0, 40: 64.0}


def plant_outliers(source: Path, out: Path) -> Path:
    """Copy a checkpoint with channels before qkv, proj and the MLP scaled up, and the weights that read them down;
    and with channels of the queries scaled up, and those of the keys down."""
    shutil.copytree(source, out)
    file = out / "model.safetensors"
    tensors: dict[str, Any] = load_file(file)
    layers = {name.split(".blocks.")[1].split(".")[0] for name in tensors if ".visual.blocks." in name}
    prefix = next(name.split("blocks.")[0] for name in tensors if ".visual.blocks." in name)
    vision = json.loads((out / "config.json").read_text())["vision_config"]
    half = vision["hidden_size"] // vision["num_heads"] // 2
    for layer in layers:
        block = f"{prefix}blocks.{layer}"
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.linear_fc1")):
            for channel, factor in FACTORS.items():
                for part in ("weight", "bias"):
                    tensors[f"{block}.{norm}.{part}"][channel] *= factor
                tensors[f"{block}.{linear}.weight"][:, channel] /= factor
        width = tensors[f"{block}.attn.proj.weight"].shape[1]
        for channel, factor in FACTORS.items():  # the value rows, which attention passes on channel by channel
            for part in ("weight", "bias"):
                tensors[f"{block}.attn.qkv.{part}"][2 * width + channel] *= factor
            tensors[f"{block}.attn.proj.weight"][:, channel] /= factor
        for channel, factor in FACTORS.items():  # with the one that the rotary embedding turns it into
            first = channel % half + channel // half * 2 * half
            for part in ("weight", "bias"):
                rows = tensors[f"{block}.attn.qkv.{part}"]
                rows[[first, first + half]] *= factor
                rows[[width + first, width + first + half]] /= factor
    assert all(np.isfinite(value).all() for value in tensors.values())
    save_file(tensors, file, metadata={"format": "pt"})
    return out
