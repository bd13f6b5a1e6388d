"""Parity's default limits by precision; a gate file (`--gate`) overrides them.

Limits of outputs and answers are in `contract/bundle/precision.py`, beside each precision; here are those of layers,
and what a wire form adds to the answers' limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.precision import COARSER, PRECISIONS, as_computed


@dataclass(frozen=True)
class PrecisionLimits:
    """Limits of one precision.

    Attributes:
        min_cosine: of every encoder output in every bucket to PyTorch fp32.
        max_relative_l2: of the same.
        min_agreement: share of prompts whose greedy tokens are the unsplit model's.
        max_kl: most accepted KL at any step of an answer, in nats.
        layer_tolerance: relative L2 of a layer's output beyond which it counts as drifted.
    """

    min_cosine: float
    max_relative_l2: float
    min_agreement: float
    max_kl: float
    layer_tolerance: float


@dataclass(frozen=True)
class WireLimits:
    """What a wire form may do to answers; to embeddings: `explained_error` in wire_forms.py."""

    min_agreement: float
    max_kl: float


# By the coarsest type that a set computes in; int8 and fp8 are provisional.
LAYER_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1, "fp8": 1e-1}
# For a precision that is new to this release.
UNKNOWN = PrecisionLimits(min_cosine=0.999, max_relative_l2=5e-2, min_agreement=0.98, max_kl=1e-1, layer_tolerance=1e-1)
# KL as in contract/bundle/precision.py, 40 times the square of the rounding's relative L2: at most 2^-11 and 2^-8 for
# float16 and bfloat16; for the others 1/36 (E4M3), and crest / 440 and crest / 24 (int8 and int4: a step is the largest
# value of a row or a group over 127 or 7, and its error the step over the root of 12) with crests of 11 and 4.7, where
# the reference checkpoint's are 9 and 4.5. A basis also leaves out what its directions do not span.
WIRE_LIMITS = {
    "fp32": WireLimits(1.0, 0.0),
    "fp16": WireLimits(0.99, 1e-5),
    "bf16": WireLimits(0.98, 6e-4),
    "fp8": WireLimits(0.98, 3e-2),
    "int8": WireLimits(0.98, 2.5e-2),
    "int4": WireLimits(0.98, 1.6),
    "int8-int4": WireLimits(0.98, 1.6),
    "basis-int8": WireLimits(0.98, 1.6e-1),
    "basis-int4": WireLimits(0.98, 1.6),
}


def limits_of(precision: str, backend: str = "") -> PrecisionLimits:
    """Limits of a set's precision as a backend computes it, `UNKNOWN` for one that is in no table."""
    if precision not in PRECISIONS and precision not in COARSER:
        return UNKNOWN
    spec = as_computed(precision, backend)
    tolerance = LAYER_TOLERANCES[spec.quantized or spec.rest]
    if precision in COARSER or backend in COARSER:
        tolerance = max(tolerance, spec.max_relative_l2)
    return PrecisionLimits(spec.min_cosine, spec.max_relative_l2, spec.min_agreement, spec.max_kl, tolerance)


def wire_limits(wire_dtype: str) -> WireLimits:
    """Limits of a wire form; those of the coarsest for one that is in no table, such as "auto"."""
    return WIRE_LIMITS.get(wire_dtype, WIRE_LIMITS["basis-int4"])


def answer_kl(precision: str, wire_dtype: str, backend: str = "") -> float:
    """Most accepted KL of a set and a wire form together: errors add up, and KL is their square."""
    return (math.sqrt(limits_of(precision, backend).max_kl) + math.sqrt(wire_limits(wire_dtype).max_kl)) ** 2
