"""The weights file of a quantized set: int8 or float8 matrices with a scale per output channel, all else unchanged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.calibration.smoothing import Smoothing, Vector
from qwen3vl_edge.contract.bundle.manifest import PrecisionSet
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.export.onnx.quantization import LARGEST, Quantization, is_scores
from qwen3vl_edge.export.onnx.stage_graphs import PATCHES
from qwen3vl_edge.export.onnx.weights import StoredTensor, append_tensor, stored_dtype, stored_in_graphs

SMALLEST_HALF = 2.0**-14  # a smaller float16 loses mantissa bits, which a scale must not


@dataclass(frozen=True)
class SourceWeights:
    """A set's weights file, mapped; tensors come as float32."""

    stored: dict[str, StoredTensor]
    data: NDArray[np.uint8]

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor, widened to float32; a view of the file where it is float32 already."""
        at = self.stored[name]
        raw = self.data[at.offset : at.offset + at.length]
        return raw.view(at.dtype).reshape(at.shape).astype(np.float32, copy=False)

    def of_stage(self, stage: str) -> SourceWeights:
        """The tensors of one stage (`export/onnx/stage_graphs.py`)."""
        prefixes = ("patch_embed.", "pos_embed.") if stage == PATCHES else (f"{stage}.",)
        return SourceWeights({name: at for name, at in self.stored.items() if name.startswith(prefixes)}, self.data)

    def largest_by_input(self, linear: str) -> Vector:
        """max over outputs of |W|, float32 [input channels]."""
        return np.asarray(np.abs(self.read(f"{linear}.weight")).max(axis=0), dtype=np.float32)


def source_weights(bundle: Bundle, graphs: PrecisionSet) -> SourceWeights:
    """Map the weights that the graphs of a set read."""
    stored = stored_in_graphs(bundle.graph_path(graph) for graph in graphs.graphs)
    return SourceWeights(stored, np.memmap(bundle.path / graphs.weights, dtype=np.uint8, mode="r"))


def write_quantized_weights(
    source: SourceWeights,
    quantization: Quantization,
    smoothing: Sequence[Smoothing],
    rest: str,
    path: Path,
    progress: Callable[[float], None] = lambda done: None,
    float32_layers: Collection[str] = (),
) -> dict[str, StoredTensor]:
    """Write the weights of a quantized set, one tensor in memory at a time.

    A quantized linear gets `NAME.weight` [in, out] in the quantized type, and `NAME.weight_scale` [out].

    Args:
        rest: "fp32" or "fp16", of everything that is not quantized and of the scales.
        float32_layers: those of which both are float32 all the same.

    Raises:
        CheckpointError: a tensor does not fit float16.
    """
    folded = FoldedWeights(source, smoothing)
    stored: dict[str, StoredTensor] = {}
    with path.open("wb") as file:
        for index, name in enumerate(source.stored):
            array = folded.tensor(name)
            linear = name.removesuffix(".weight")
            if name.endswith(".weight") and linear in quantization.input_scales:
                values, scales = quantize_rows(array, quantization.kind, "fp32" if linear in float32_layers else rest)
                stored[name] = append_tensor(file, name, np.ascontiguousarray(values.T), values.dtype)
                stored[f"{name}_scale"] = append_tensor(file, f"{name}_scale", scales, scales.dtype)
            else:
                stored[name] = append_tensor(file, name, array, stored_dtype(name, rest, float32_layers))
            progress((index + 1) / len(source.stored))
    return stored


def quantize_rows(
    weights: NDArray[np.float32], kind: str, rest: str = "fp32"
) -> tuple[NDArray[Any], NDArray[np.float32] | NDArray[np.float16]]:
    """Symmetric quantization of each row by its largest magnitude.

    Returns:
        values [rows, columns] int8 (-127 to 127) or float8 e4m3, and scales [rows] in the precision `rest`;
        weights ≈ values · scale.
    """
    largest = np.abs(weights).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(LARGEST[kind]), np.float32(1))
    if rest == "fp16":
        # Rounded up, so that no value leaves the range of the type.
        half = np.maximum(scales, SMALLEST_HALF).astype(np.float16)
        half = np.where(half.astype(np.float32) < scales, np.nextafter(half, np.float16(np.inf)), half)
        scales = half.astype(np.float32)
    scaled = weights / scales[:, None]
    values = np.clip(np.rint(scaled), -127, 127) if kind == "int8" else np.clip(scaled, -448, 448)
    return values.astype(Quantization(kind).stored_dtype), scales.astype(stored_dtype("scale", rest))


class FoldedWeights:
    """The source's tensors with smoothing folded in: W·s for the linear, 1/s for the producer of its input."""

    def __init__(self, source: SourceWeights, smoothing: Sequence[Smoothing]) -> None:
        self._source = source
        self._consumers: Mapping[str, Vector] = {item.product: item.factors for item in smoothing}
        self._producers: dict[str, list[Smoothing]] = {}
        for item in smoothing:
            self._producers.setdefault(item.producer, []).append(item)

    def tensor(self, name: str) -> NDArray[np.float32]:
        array = self._source.read(name)
        module, kind = name.rsplit(".", 1)
        if kind == "weight" and module in self._consumers:
            array = array * self._consumers[module]
        for item in self._producers.get(module, ()):
            array = divided(array, item)
        return array


def divided(array: NDArray[np.float32], item: Smoothing) -> NDArray[np.float32]:
    """A producer's weights [out, in], or a vector of its outputs [out], divided by what the product multiplies."""
    if item.producer.endswith("qkv"):  # rows of queries, keys, values; attention is linear in the values
        array, values = array.copy(), 2 * len(array) // 3
        rows = array[:values] if is_scores(item.product) else array[values:]
        rows /= item.factors if array.ndim == 1 else item.factors[:, None]
        return array
    return array / item.factors[: len(array)]  # a norm; the last merger's is a quarter as wide as its linear's input
