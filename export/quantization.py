"""What a quantized graph needs to know: which linears, in which type, and the scale of what each reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from contract.manifest import VisionSpec
from export.weights import mergers

# Largest magnitude each type is scaled to. int8 leaves -128 out: symmetric, as TensorRT wants it.
LARGEST = {"int8": 127.0, "fp8": 448.0}
DTYPES: dict[str, np.dtype[Any]] = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}


@dataclass(frozen=True)
class Quantization:
    """Explicit, symmetric quantization of some linears.

    Attributes:
        kind: "int8" or "fp8" (float8 e4m3).
        input_scales: by linear, such as "blocks.3.mlp.linear_fc1": its input is quantized as x / scale. A
            linear that is not named stays in the graph's own precision.
    """

    kind: str = "int8"
    input_scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.kind]


NOT_QUANTIZED = Quantization()


def block_linears(layer: int) -> tuple[str, ...]:
    """The four linears of a block, in the order they run."""
    return tuple(f"blocks.{layer}.{name}" for name in ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"))


def quantizable_linears(spec: VisionSpec) -> tuple[str, ...]:
    """Every linear that can be quantized.

    The patch embedding is left out: a fiftieth of the products, and the uint8 graph computes it from other
    weights than the patch graph.
    """
    names = [name for layer in range(spec.depth) for name in block_linears(layer)]
    for merger, _ in mergers(spec):
        names += [f"{merger}.linear_fc1", f"{merger}.linear_fc2"]
    return tuple(names)
