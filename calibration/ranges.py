"""The range that an activation is quantized to: its maximum, or less where clipping costs less than rounding.

`percentile` and `entropy` are ONNX Runtime's own (`onnxruntime.quantization.calibrate.HistogramCollector`);
it has no `mse`, which is here.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.calibration.histograms import ChannelHistogram
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.onnx.quantization import LARGEST

METHODS = ("max", "entropy", "percentile", "mse")
PERCENTILE = 99.999
_BINS = 2048


def check_method(method: str) -> None:
    """Raises: InputError: no such method."""
    if method not in METHODS:
        raise InputError("no such method", field="--method", expected=" or ".join(METHODS), got=method)


def activation_range(histogram: ChannelHistogram, factor: NDArray[np.float32], method: str, kind: str) -> float:
    """The largest magnitude that keeps its value when the tensor is quantized, with channels times `factor`.

    Args:
        histogram: of the activation before `factor`.
        factor: float32 [channels].
        method: of METHODS.
        kind: "int8" or "fp8". A float8 has steps relative to the value, so cutting its range gains nothing:
            every method but `percentile` gives the maximum.
    """
    top = float((histogram.largest * factor).max(initial=0.0))
    if top == 0.0:
        return 1.0  # nothing but zeros: any scale is right
    if method == "max" or (kind == "fp8" and method != "percentile"):
        return top
    # ONNX Runtime searches the entropy in Python, bin by bin: fewer bins there.
    counts, edges = histogram.rescaled(factor, _BINS // 4 if method == "entropy" else _BINS)
    limit = _mse(counts, edges) if method == "mse" else _collector(method, counts, edges)
    return min(max(limit, top * 1e-3), top)


def scale_of(limit: float, kind: str) -> float:
    """Quantization step: the value of a stored 1."""
    return limit / LARGEST[kind]


def _collector(method: str, counts: NDArray[np.float64], edges: NDArray[np.float64]) -> float:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, len(counts), 128, PERCENTILE, "same")
    top = np.float32(edges[-1])
    whole = np.rint(counts * 1024).astype(np.int64)  # integers, scaled so that fractions of a bin are not rounded away
    if method == "percentile":
        collector.histogram_dict = {"x": (whole, edges.astype(np.float32), -top, top)}
    else:  # two-sided: mirrored, each half with half of the bins
        half = whole.reshape(-1, 2).sum(axis=1)
        both = np.concatenate([-edges[::-2], edges[2::2]]).astype(np.float32)
        collector.histogram_dict = {"x": (np.concatenate([half[::-1], half]), both, -top, top, top)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        limits = collector.compute_collection_result()["x"]
    return float(max(abs(float(limits[0])), abs(float(limits[1]))))


def _mse(counts: NDArray[np.float64], edges: NDArray[np.float64]) -> float:
    """The range with the least squared error: rounding below it (step²/12) and clipping above it."""
    centres = (edges[1:] + edges[:-1]) / 2
    best, least = float(edges[-1]), np.inf
    for limit in np.linspace(edges[-1] / 64, edges[-1], 256):
        inside = centres <= limit
        step = limit / LARGEST["int8"]
        rounding = np.minimum(step**2 / 12, centres**2)  # below half a step a value becomes 0, no worse than itself
        error = float((counts * np.where(inside, rounding, (centres - limit) ** 2)).sum())
        if error < least:
            best, least = float(limit), error
    return best
