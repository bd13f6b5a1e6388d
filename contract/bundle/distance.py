"""Distance between the outputs of two implementations of one network: the formula of every parity metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Distance:
    """Distance of one output from its reference.

    Attributes:
        cosine: cosine similarity of the flattened arrays; 1.0 is equal direction.
        max_abs: largest absolute difference.
        relative_l2: ‖a - b‖ / ‖b‖.
    """

    cosine: float
    max_abs: float
    relative_l2: float

    def worst(self, other: Distance) -> Distance:
        """The worse value of each metric; NaN is worse than any number."""
        return Distance(
            float(np.minimum(self.cosine, other.cosine)),
            float(np.maximum(self.max_abs, other.max_abs)),
            float(np.maximum(self.relative_l2, other.relative_l2)),
        )


def distance(actual: NDArray[Any], reference: NDArray[Any]) -> Distance:
    """Distance of two arrays of one shape, computed in float64. NaN anywhere makes every metric NaN."""
    a = actual.astype(np.float64).reshape(-1)
    b = reference.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    difference = a - b
    return Distance(
        float(not difference.any()) if norms == 0 else float(a @ b) / norms,
        float(np.abs(difference).max(initial=0.0)),
        float(np.linalg.norm(difference) / max(float(np.linalg.norm(b)), 1e-30)),
    )
