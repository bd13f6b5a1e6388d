"""Parity's default limits by precision; a gate file (`--gate`) overrides them.

Limits of outputs and agreement are in `contract/bundle/precision.py`, beside each precision; here are those of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.precision import PRECISIONS


@dataclass(frozen=True)
class PrecisionLimits:
    """Limits of one precision.

    Attributes:
        min_cosine: of every encoder output in every bucket to PyTorch fp32.
        max_relative_l2: of the same.
        min_agreement: share of prompts whose greedy tokens are the unsplit model's.
        layer_tolerance: relative L2 of a layer's output beyond which it counts as drifted.
    """

    min_cosine: float
    max_relative_l2: float
    min_agreement: float
    layer_tolerance: float


# By the coarsest type that a set computes in; int8 and fp8 are provisional.
LAYER_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1, "fp8": 1e-1}
# For a precision that is new to this release.
UNKNOWN = PrecisionLimits(min_cosine=0.999, max_relative_l2=5e-2, min_agreement=0.98, layer_tolerance=1e-1)


def limits_of(precision: str) -> PrecisionLimits:
    """Limits of a set's precision, `UNKNOWN` for one that is in no table."""
    if precision not in PRECISIONS:
        return UNKNOWN
    spec = PRECISIONS[precision]
    tolerance = LAYER_TOLERANCES[spec.quantized or spec.rest]
    return PrecisionLimits(spec.min_cosine, spec.max_relative_l2, spec.min_agreement, tolerance)
