"""Parameters of a quantized graph: which products, in which type, and the scale of each one's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.export.onnx.weights import mergers

# Largest magnitude each type is scaled to. int8 does not use -128: symmetric, as TensorRT requires.
LARGEST = {"int8": 127.0, "fp8": 448.0}
DTYPES: dict[str, np.dtype[Any]] = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}


@dataclass(frozen=True)
class Quantization:
    """Explicit, symmetric quantization of some products.

    Attributes:
        kind: "int8" or "fp8" (float8 e4m3).
        input_scales: by linear, such as "blocks.3.mlp.linear_fc1": its input is quantized as x / scale. By
            attention scores, such as "blocks.3.attn.scores": rotated queries and keys are, both with that scale. All
            other products stay in the graph's own precision.
    """

    kind: str = "int8"
    input_scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.kind]


NOT_QUANTIZED = Quantization()


SCORES = "attn.scores"
_BLOCK = ("attn.qkv", SCORES, "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")


def is_scores(name: str) -> bool:
    """Whether it names a block's queries times keys, and not a linear."""
    return name.endswith(f".{SCORES}")


def quantizable(spec: VisionSpec, *, scores: bool = True) -> tuple[str, ...]:
    """Every product that can be quantized: those of a block in the order they run, then the mergers'.

    The patch embedding is excluded: a fiftieth of the multiplications, and the uint8 graph computes it from other
    weights than the patch graph. So is the product with the values: a step of 1/127 is coarser than the attention
    weight of one of many patches.

    Args:
        scores: attention scores too.
    """
    names = [f"blocks.{layer}.{name}" for layer in range(spec.depth) for name in _BLOCK if scores or name != SCORES]
    for merger, _ in mergers(spec):
        names += [f"{merger}.linear_fc1", f"{merger}.linear_fc2"]
    return tuple(names)
