"""Write a quantized set into its bundle: one weights file, a graph per bucket, each measured; the manifest last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_edge.calibration.quantized_weights import SourceWeights, write_quantized_weights
from qwen3vl_edge.calibration.sensitivity import Sensitivity
from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.contract.bundle.edit import edit
from qwen3vl_edge.contract.bundle.golden import GOLDEN_NAME, write_golden
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, PrecisionSet
from qwen3vl_edge.contract.bundle.measurements import CalibrationRecord, LayerHeadroom
from qwen3vl_edge.contract.bundle.open import Bundle, record_file
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.errors import BundleError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.export.onnx.check import CheckCase, measure_graph
from qwen3vl_edge.export.onnx.encoder_graph import EncoderGraph, dynamic_graph, fixed_graph, image_graph
from qwen3vl_edge.export.onnx.headroom import float32_layers
from qwen3vl_edge.export.onnx.quantization import Quantization
from qwen3vl_edge.export.onnx.weights import StoredTensor

WEIGHTS_NAME = "weights.bin"
SENSITIVITY_NAME = "sensitivity.json"


@dataclass(frozen=True)
class QuantizedSet:
    """All inputs of a quantized set.

    Attributes:
        precision: name of the set, a key of `PRECISIONS` in `contract/bundle/precision.py`.
        headroom: of each layer where the rest is float16.
    """

    precision: str
    quantization: Quantization
    smoothing: tuple[Smoothing, ...]
    record: CalibrationRecord
    sensitivity: Sensitivity | None
    headroom: tuple[LayerHeadroom, ...] = ()


def write_set(
    bundle: Bundle,
    base: PrecisionSet,
    weights: SourceWeights,
    quantized: QuantizedSet,
    cases: Sequence[CheckCase],
    golden: Sequence[CheckCase],
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> PrecisionSet:
    """Write the graphs of `base` quantized, measure them on `cases`, and add them to the manifest.

    Args:
        golden: the golden pictures; their distances are not those that the manifest records.

    Raises:
        BundleError: the bundle cannot be written, or its base set was replaced meanwhile.
        CheckpointError: a tensor does not fit float16.
        ParityError: a graph is not valid ONNX.
    """
    folder = bundle.path / f"{quantized.precision}-{quantized.record.key[:8]}"
    rest = PRECISIONS[quantized.precision].rest
    with atomic.new_folder(folder) as staging:
        progress("writing weights", 0.0)
        stored = write_quantized_weights(
            weights,
            quantized.quantization,
            quantized.smoothing,
            rest,
            staging / WEIGHTS_NAME,
            float32_layers=float32_layers(quantized.headroom),
        )
        if quantized.sensitivity is not None:
            (staging / SENSITIVITY_NAME).write_text(quantized.sensitivity.to_json(), encoding="utf-8")
        records, cosines = [], {}
        for index, graph in enumerate(base.graphs):
            name = Path(graph.path).name
            progress(f"measuring {name}", 0.1 + 0.9 * index / len(base.graphs))
            record = _write_graph(bundle, graph, quantized, stored, staging, folder.name)
            records.append(_measured(bundle, staging / name, record, quantized, cases))
            proof = _measured(bundle, staging / name, record, quantized, golden)
            cosines[name] = [row.cosine for row in proof.parity]
        references = {case.input.grid: case.reference for case in golden}
        write_golden(staging / GOLDEN_NAME, references, bundle.manifest.vision.output_names, cosines)
    sensitivity = None if quantized.sensitivity is None else f"{folder.name}/{SENSITIVITY_NAME}"
    calibration = replace(quantized.record, sensitivity=sensitivity)
    graphs = PrecisionSet(
        quantized.precision,
        f"{folder.name}/{WEIGHTS_NAME}",
        tuple(records),
        calibration,
        f"{folder.name}/{GOLDEN_NAME}",
        quantized.headroom,
    )
    try:
        _record(bundle, base, folder, graphs)
    except BundleError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return graphs


def _write_graph(
    bundle: Bundle,
    source: GraphRecord,
    quantized: QuantizedSet,
    stored: dict[str, StoredTensor],
    staging: Path,
    folder: str,
) -> GraphRecord:
    name = Path(source.path).name
    graph = _graph(bundle, source, quantized, stored)
    (staging / name).write_bytes(graph.model.SerializeToString(deterministic=True))
    return GraphRecord(source.kind, source.bucket, f"{folder}/{name}", graph.inputs, graph.outputs)


def _measured(
    bundle: Bundle, path: Path, graph: GraphRecord, quantized: QuantizedSet, cases: Sequence[CheckCase]
) -> GraphRecord:
    """The graph's record with its distances on those of the cases that it serves."""
    fixed = set(bundle.manifest.buckets(quantized.record.base))
    own = [
        case
        for case in cases
        if (case.input.grid not in fixed if graph.grid is None else case.input.grid == graph.grid)
    ]
    disabled = ORT_DISABLED_OPTIMIZERS[quantized.quantization.kind]
    return measure_graph(path, graph, own or cases[:1], bundle.manifest.vision, disabled)


def _graph(
    bundle: Bundle, source: GraphRecord, quantized: QuantizedSet, stored: dict[str, StoredTensor]
) -> EncoderGraph:
    vision, rest = bundle.manifest.vision, PRECISIONS[quantized.precision].rest
    how = quantized.quantization, float32_layers(quantized.headroom)
    if source.grid is None:
        return dynamic_graph(vision, rest, stored, WEIGHTS_NAME, *how)
    if source.kind == "image_uint8":
        constants = bundle.manifest.preprocessing
        return image_graph(vision, constants, source.grid, rest, stored, WEIGHTS_NAME, *how)
    return fixed_graph(vision, source.grid, rest, stored, WEIGHTS_NAME, *how)


def _record(bundle: Bundle, base: PrecisionSet, folder: Path, graphs: PrecisionSet) -> None:
    """Add the set to the manifest, in place of the one of the same precision and without that one's engines."""
    written = tuple(record_file(bundle.path, file) for file in sorted(folder.iterdir()))
    with edit(bundle.path, unchanged=[bundle.manifest.file(path) for path in base.files]) as change:
        manifest = change.manifest
        others = tuple(item for item in manifest.precisions if item.precision != graphs.precision)
        # Engines of the replaced graphs would be refused when loaded.
        engines = tuple(engine for engine in manifest.engines if engine.precision != graphs.precision)
        change.manifest = replace(manifest, precisions=(*others, graphs), engines=engines)
        change.written = written
