"""Statistics and ranges against what they stand for: the values themselves, and ONNX Runtime's own calibrators."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from qwen3vl_edge.calibration.histograms import BINS, EDGES, ChannelHistogram
from qwen3vl_edge.calibration.ranges import METHODS, PERCENTILE, activation_range, check_method, scale_of
from qwen3vl_edge.calibration.smoothing import balanced_scores
from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.vision_config import read_vision_spec

Values = NDArray[np.float32]


def activation(outliers: float = 1.0, rows: int = 3000) -> Values:
    """[rows, 24], heavy-tailed; two channels `outliers` times as large."""
    values = np.random.default_rng(5).laplace(0, 1, (rows, 24)).astype(np.float32)
    values[:, [3, 17]] *= outliers
    return values


def histogram_of(values: Values, batches: int = 1) -> ChannelHistogram:
    histogram = ChannelHistogram.empty(values.shape[1])
    for part in np.array_split(values, batches):
        histogram.add(part)
    return histogram


def quantized(values: Values, limit: float) -> Values:
    step = np.float32(scale_of(limit, "int8"))
    return np.asarray(np.clip(np.rint(values / step), -127, 127) * step, dtype=np.float32)


def ones(values: Values) -> Values:
    return np.ones(values.shape[1], np.float32)


def test_counts_are_the_values() -> None:
    values = activation()
    histogram = histogram_of(values)
    assert histogram.rows == len(values)
    np.testing.assert_array_equal(histogram.largest, np.abs(values).max(axis=0))
    for channel in (0, 3):
        expected, _ = np.histogram(np.abs(values[:, channel]), bins=EDGES)
        np.testing.assert_array_equal(histogram.counts[channel], expected)
    assert histogram.counts.shape == (24, BINS)


def test_batches_add_up() -> None:
    values = activation()
    one, many = histogram_of(values), histogram_of(values, batches=7)
    np.testing.assert_array_equal(one.counts, many.counts)
    np.testing.assert_array_equal(one.largest, many.largest)


def test_tiny_and_huge_values_are_counted() -> None:
    values = np.array([[0.0, 1e-9, 3e4, 1e9]], np.float32)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == 4
    np.testing.assert_array_equal(histogram.largest, values[0])
    assert histogram.rescaled(np.ones(4, np.float32), 64)[0].sum() == pytest.approx(4)


def test_rescaled_is_the_histogram_of_scaled_values() -> None:
    values = activation(outliers=80.0)
    factor = np.ones(24, np.float32)
    factor[[3, 17]] = 1 / 80
    counts, edges = histogram_of(values).rescaled(factor, 64)
    expected, _ = np.histogram(np.abs(values * factor), bins=edges)
    assert counts.sum() == pytest.approx(values.size)
    assert edges[-1] == pytest.approx(np.abs(values * factor).max())
    # Equal but for where inside a logarithmic bin a value lies.
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() < 0.01 * values.size


def test_max_is_exact() -> None:
    values = activation()
    assert activation_range(histogram_of(values), ones(values), "max", "int8") == np.abs(values).max()
    assert scale_of(127.0, "int8") == 1.0
    assert scale_of(448.0, "fp8") == 1.0


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_ranges_are_onnxruntime_s_own(method: str) -> None:
    """On the values themselves its calibrators find the same ranges, to the width of a logarithmic bin."""
    values = activation()
    collector = HistogramCollector(method, True, 512 if method == "entropy" else 2048, 128, PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": [values]} if method == "entropy" else {"x": values})
        low, high, *_ = collector.compute_collection_result()["x"]
    expected = max(abs(float(low)), abs(float(high)))
    assert activation_range(histogram_of(values), ones(values), method, "int8") == pytest.approx(expected, rel=0.1)


def test_mse_is_the_best_range() -> None:
    values = activation()
    limit = activation_range(histogram_of(values), ones(values), "mse", "int8")
    top = float(np.abs(values).max())
    assert limit < top

    def error(candidate: float) -> float:
        return float(((quantized(values, candidate) - values) ** 2).mean())

    best = min(error(candidate) for candidate in np.linspace(top / 64, top, 128))
    assert error(limit) <= 1.02 * best
    assert error(limit) < error(top)


def test_methods_cut_outliers_and_never_exceed_the_maximum() -> None:
    values = activation(rows=12_000)  # one in 288,000 is within the percentile's share
    values[0, 0] = 1000.0
    histogram = histogram_of(values)
    found = {name: activation_range(histogram, ones(values), name, "int8") for name in METHODS}
    assert found["max"] == 1000.0
    assert found["percentile"] < 100
    assert all(0 < value <= 1000.0 for value in found.values())


def test_float8_keeps_its_range() -> None:
    values = activation()
    assert activation_range(histogram_of(values), ones(values), "mse", "fp8") == np.abs(values).max()


def test_zeros_give_a_scale() -> None:
    zeros: Any = np.zeros((4, 3), np.float32)
    assert activation_range(histogram_of(zeros), ones(zeros), "mse", "int8") == 1.0


def test_unknown_method() -> None:
    with pytest.raises(InputError, match=r"--method|no such method.*max or entropy or percentile or mse"):
        check_method("average")


def test_queries_and_keys_become_as_large_as_each_other(reference: Path) -> None:
    """In every pair of channels that the rotary embedding turns into each other; their product stays what it was."""
    spec = read_vision_spec(open_checkpoint(str(reference)))
    heads, half, width = spec.num_heads, spec.head_dim // 2, spec.hidden_size
    generator = np.random.default_rng(4)
    sizes = np.exp(generator.normal(0, 1.5, (2, heads, 1, half))).repeat(2, axis=2).reshape(2 * width)
    values = (generator.uniform(-1, 1, (500, 2 * width)) * sizes).astype(np.float32)
    found = balanced_scores(spec, "blocks.0.attn.scores", histogram_of(values))
    assert found.producer == "blocks.0.attn.qkv"
    queries, keys = found.factors[:width], found.factors[width:]
    np.testing.assert_allclose(queries * keys, 1, rtol=1e-6)
    of_pairs = queries.reshape(heads, 2, half)
    np.testing.assert_array_equal(of_pairs[:, 0], of_pairs[:, 1])
    largest = np.abs(values / found.factors).max(axis=0).reshape(2, heads, 2, half).max(axis=2)
    np.testing.assert_allclose(largest[0], largest[1], rtol=1e-5)
