"""Which layers of an fp16 graph float16 can hold, from the largest value of each of their tensors.

ONNX Runtime computes fp16 graphs in float32 on a CPU, so a check there does not notice a value that only overflows on
a GPU. The values are observed in float32 instead; a layer that comes within `LEAST_HEADROOM` of float16's largest value
stays float32 in the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.measurements import LayerHeadroom
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.wire.packing import FLOAT16_MAX
from qwen3vl_edge.export.onnx.quantization import is_scores, quantizable
from qwen3vl_edge.export.onnx.weights import IMAGE_EMBEDDING, PATCH_EMBEDDING

LEAST_HEADROOM = 4.0  # between the largest value seen and float16's: other pictures have larger ones

Vector = NDArray[np.float32]


@dataclass
class LayerRanges:
    """Largest magnitudes of what each layer reads and gives, float32 by channel, over the pictures that were run.

    A linear gives each output plus its bias's magnitude, which bounds the product before the bias too. Scores
    (`blocks.0.attn.scores`) read rotated queries and keys and give one number, which no score exceeds.
    """

    inputs: dict[str, Vector] = field(default_factory=dict)
    outputs: dict[str, Vector] = field(default_factory=dict)

    def see(self, layer: str, inputs: Vector, outputs: Vector) -> None:
        """Widen a layer's ranges."""
        for known, seen in ((self.inputs, inputs), (self.outputs, outputs)):
            known[layer] = np.maximum(known[layer], seen) if layer in known else seen.astype(np.float32)

    def observe(self, layer: str, inputs: NDArray[np.float32], largest: Vector) -> None:
        """Widen a layer's ranges by one run: what it read, [rows, channels], and the largest that it gave."""
        self.see(layer, np.abs(inputs).max(axis=0).astype(np.float32), largest)

    def largest(self, layer: str) -> float:
        """Of all that a layer holds in its own type; NaN if one is."""
        parts = [self.inputs[layer], self.outputs[layer]]
        if is_scores(layer):  # the same type holds queries, keys and values before and after them
            parts.append(self.outputs[layer.replace("scores", "qkv")])
        return float(np.max(np.concatenate([part.reshape(-1) for part in parts])))


def layers(spec: VisionSpec) -> tuple[str, ...]:
    """All layers with a type of their own, in the order they run: linears, and attention between two of them."""
    return (PATCH_EMBEDDING, *quantizable(spec))


def judge_headroom(
    spec: VisionSpec, ranges: LayerRanges, weights: Mapping[str, float], others: Collection[str] = ()
) -> tuple[LayerHeadroom, ...]:
    """The headroom of each layer, and which type it gets.

    Args:
        ranges: of every layer.
        weights: largest magnitude of each linear's stored weights, which need to fit but need no headroom.
        others: layers that stay float32 for another reason.

    Raises:
        CheckpointError: values that float32 does not hold either.
    """
    found = []
    for layer in layers(spec):
        largest = ranges.largest(layer)
        if not np.isfinite(largest):
            raise CheckpointError(
                f"layer {layer} of the encoder gives infinity or NaN in float32 too",
                field=layer,
                expected="finite values",
                got=largest,
                remedy="Check the checkpoint: it cannot answer about pictures.",
            )
        fits = largest * LEAST_HEADROOM <= FLOAT16_MAX and weights.get(layer, 0.0) <= FLOAT16_MAX
        fits = fits and layer not in others
        headroom = FLOAT16_MAX / largest if largest else FLOAT16_MAX
        found.append(LayerHeadroom(layer, largest, headroom, "fp16" if fits else "fp32"))
    return tuple(found)


def float32_layers(headroom: Iterable[LayerHeadroom]) -> frozenset[str]:
    """The layers that stay float32 in an fp16 graph, as `EncoderWriter` and the weights file name them."""
    names = {item.layer for item in headroom if item.precision == "fp32"}
    return frozenset(names | {IMAGE_EMBEDDING} if PATCH_EMBEDDING in names else names)
