"""What parity must hold by default, one row per precision; a gate file (`--gate`) overrides it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrecisionLimits:
    """Limits of one precision.

    Attributes:
        min_cosine: of every encoder output in every bucket to PyTorch fp32.
        min_agreement: share of prompts whose greedy tokens are the unsplit model's.
        layer_tolerance: relative L2 of a layer's output beyond which it counts as drifted.
    """

    min_cosine: float
    min_agreement: float
    layer_tolerance: float


# int8 and fp8 are provisional until a bundle of each has been measured on real pictures.
LIMITS = {
    "fp32": PrecisionLimits(min_cosine=0.99999, min_agreement=1.0, layer_tolerance=1e-4),
    "fp16": PrecisionLimits(min_cosine=0.9999, min_agreement=0.99, layer_tolerance=1e-2),
    "int8": PrecisionLimits(min_cosine=0.999, min_agreement=0.98, layer_tolerance=1e-1),
    "fp8": PrecisionLimits(min_cosine=0.998, min_agreement=0.98, layer_tolerance=1e-1),
}
UNKNOWN = PrecisionLimits(min_cosine=0.999, min_agreement=0.98, layer_tolerance=1e-1)


def limits_of(precision: str) -> PrecisionLimits:
    """The row of a precision, `UNKNOWN` for one that has none."""
    return LIMITS.get(precision, UNKNOWN)
