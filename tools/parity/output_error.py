"""The error of one encoder output against its reference: as a whole, per token and by quantile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.distance import Distance, distance

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
# Decades of |error| that the histogram covers, in quarters; smaller values count in the first bin.
HISTOGRAM_EDGES = np.linspace(-9.0, 3.0, 49)


@dataclass(frozen=True)
class OutputError:
    """One output of one picture against its reference.

    Attributes:
        token_error: float64 [n], L2 of each token's error over the root mean square of the reference
            tokens' norms, so that the small norm of a token does not exaggerate its error.
        quantiles: |error| at `QUANTILES`, in the output's own unit.
        histogram: int64 [48], values per bin of log10 |error| (`HISTOGRAM_EDGES`).
    """

    distance: Distance
    token_error: NDArray[np.float64]
    quantiles: tuple[float, ...]
    histogram: NDArray[np.int64]

    @property
    def worst_token(self) -> float:
        """The largest token error; NaN if any is."""
        return float(self.token_error.max())


def output_error(actual: NDArray[Any], reference: NDArray[Any]) -> OutputError:
    """Compare two [n, D] outputs in float64."""
    difference = actual.astype(np.float64) - reference.astype(np.float64)
    norms = np.linalg.norm(reference.astype(np.float64), axis=1)
    scale = max(float(np.sqrt((norms**2).mean())), 1e-30)
    absolute = np.abs(difference)
    finite = absolute[np.isfinite(absolute)]
    counts, _ = np.histogram(
        np.clip(np.log10(np.maximum(finite, 1e-30)), HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES
    )
    return OutputError(
        distance(actual, reference),
        np.linalg.norm(difference, axis=1) / scale,
        tuple(float(value) for value in np.quantile(absolute, QUANTILES)),
        counts.astype(np.int64),
    )
