"""SmoothQuant: activation outliers moved into the weights, where each output channel has a scale of its own.

Per input channel c of a linear, s_c = max|X_c|^α / max|W_c|^(1-α); the linear reads X/s and its weights become
W·s (Xiao et al., 2022, arXiv 2211.10438, eq. 4). Dividing by s costs nothing where the producer of X is linear:
a LayerNorm folds it into weight and bias, attention into the value rows of qkv. The second linear of the MLP
reads a GELU, into which no factor can be folded, and is not smoothed.

Attention scores read no weights but two activations, queries and keys: q·k is a sum over a head's channels, so that a
channel may be divided by a factor in the queries and multiplied by it in the keys. The rotary embedding rotates
channels c and c + head width/2: both get one factor, sqrt(max|q| / max|k|) over the two, which gives queries and
keys equal ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.calibration.histograms import ChannelHistogram
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.onnx.quantization import SCORES

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Smoothing:
    """Factors of one product.

    Attributes:
        product: the linear whose input channels are divided, or the scores, whose queries and keys are.
        producer: the norm, or the qkv projection for its value rows or its query and key rows, that divides.
        factors: float32 [input channels]; the producer may divide by a part of it, repeated.
    """

    product: str
    producer: str
    factors: Vector


def check_alpha(alpha: float) -> None:
    """Raises: InputError: not between 0 and 1."""
    if not 0.0 <= alpha <= 1.0:
        raise InputError("bad smoothing strength", field="--smooth", expected="0 to 1", got=alpha)


def producer_of(linear: str) -> str | None:
    """The module that can divide the input of a linear without a cost; None where none can."""
    if linear.endswith("attn.qkv"):
        return linear.replace("attn.qkv", "norm1")
    if linear.endswith("attn.proj"):
        return linear.replace("attn.proj", "attn.qkv")
    if linear.endswith("mlp.linear_fc1"):
        return linear.replace("mlp.linear_fc1", "norm2")
    if linear.endswith("linear_fc1"):  # of a merger
        return linear.replace("linear_fc1", "norm")
    return None


def balanced_scores(spec: VisionSpec, scores: str, histogram: ChannelHistogram) -> Smoothing:
    """The factors that give queries and keys equal ranges.

    Args:
        histogram: of the rotated queries, then keys: [2 · heads · head width] channels.
    """
    # The two channels that the rotary embedding rotates: one of each half of a head.
    largest = histogram.largest.reshape(2, spec.num_heads, 2, spec.head_dim // 2).max(axis=2, keepdims=True)
    queries, keys = np.maximum(largest, np.float32(1e-5))
    factors = np.clip(np.sqrt(queries / keys), 1e-3, 1e3).repeat(2, axis=1).ravel()
    both = np.concatenate([factors, np.reciprocal(factors)])
    return Smoothing(scores, scores.replace(SCORES, "attn.qkv"), both.astype(np.float32))


def smoothing_factors(
    spec: VisionSpec, linear: str, histogram: ChannelHistogram, largest_weight: Vector, alpha: float
) -> Smoothing | None:
    """The factors of a linear, or None where nothing can divide its input.

    Args:
        histogram: of what the linear reads.
        largest_weight: float32 [input channels], max over the outputs of |W|.
        alpha: 0 leaves the activations as they are, 1 makes all channels of the input equal.
    """
    producer = producer_of(linear)
    if producer is None:
        return None
    magnitudes, weights = histogram.largest, largest_weight
    if linear == "merger.linear_fc1":
        # Its norm runs before the patches are placed side by side: one factor for all of them.
        magnitudes, weights = (values.reshape(-1, spec.hidden_size).max(axis=0) for values in (magnitudes, weights))
    floor = np.float32(1e-5)
    with np.errstate(divide="ignore"):
        factors = np.maximum(magnitudes, floor) ** alpha / np.maximum(weights, floor) ** (1 - alpha)
    factors = np.where((magnitudes <= floor) | (weights <= floor), np.float32(1), factors)
    factors = np.clip(factors / np.exp(np.log(factors).mean()), 1e-3, 1e3)
    if linear == "merger.linear_fc1":
        factors = np.tile(factors, spec.merge_size**2)
    return Smoothing(linear, producer, factors.astype(np.float32))
