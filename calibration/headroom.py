"""float16's headroom in a quantized set: of the values after smoothing, and of the quantization steps themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3vl_edge.calibration.quantized_weights import SMALLEST_HALF, FoldedWeights, SourceWeights, divided
from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.measurements import LayerHeadroom
from qwen3vl_edge.export.onnx.headroom import LayerRanges, judge_headroom, layers
from qwen3vl_edge.export.onnx.quantization import Quantization, is_scores


def quantized_headroom(
    spec: VisionSpec,
    ranges: LayerRanges,
    source: SourceWeights,
    quantization: Quantization,
    smoothing: Sequence[Smoothing],
) -> tuple[LayerHeadroom, ...]:
    """The headroom of each layer of a set whose rest is float16, and which of them stay float32.

    Args:
        ranges: of the encoder without smoothing.

    Raises:
        CheckpointError: values that float32 does not hold either.
    """
    folded = FoldedWeights(source, smoothing)
    weights = {
        layer: max(float(np.abs(folded.tensor(f"{layer}.{part}")).max()) for part in ("weight", "bias"))
        for layer in layers(spec)
        if not is_scores(layer)
    }
    coarse = [layer for layer, scale in quantization.input_scales.items() if scale < SMALLEST_HALF]
    return judge_headroom(spec, _smoothed(ranges, smoothing), weights, coarse)


def _smoothed(ranges: LayerRanges, smoothing: Sequence[Smoothing]) -> LayerRanges:
    inputs, outputs = dict(ranges.inputs), dict(ranges.outputs)
    for item in smoothing:
        inputs[item.product] = inputs[item.product] / item.factors
        if item.producer in outputs:  # a linear; the others are norms, which are float32
            outputs[item.producer] = divided(outputs[item.producer], item)
    return LayerRanges(inputs, outputs)
