"""A quantized set into its bundle: one weights file, a graph per bucket, each measured; the manifest last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_edge.calibration.quantized_weights import SourceWeights, write_quantized_weights
from qwen3vl_edge.calibration.sensitivity import Sensitivity
from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.contract.bundle.manifest import CalibrationRecord, GraphRecord, PrecisionSet
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle, record_file
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.export.onnx.check import CheckCase, measure_graph
from qwen3vl_edge.export.onnx.encoder_graph import EncoderGraph, dynamic_graph, fixed_graph, image_graph
from qwen3vl_edge.export.onnx.quantization import Quantization
from qwen3vl_edge.export.onnx.weights import StoredTensor

WEIGHTS_NAME = "weights.bin"
SENSITIVITY_NAME = "sensitivity.json"


@dataclass(frozen=True)
class QuantizedSet:
    """All that decides a quantized set.

    Attributes:
        precision: its name, a key of qwen3vl_edge.contract.bundle.precision.PRECISIONS.
    """

    precision: str
    quantization: Quantization
    smoothing: tuple[Smoothing, ...]
    record: CalibrationRecord
    sensitivity: Sensitivity | None


def write_set(
    bundle: Bundle,
    base: PrecisionSet,
    weights: SourceWeights,
    quantized: QuantizedSet,
    cases: Sequence[CheckCase],
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> PrecisionSet:
    """Write the same graphs as `base` has, quantized, measured on `cases`, and record them.

    Raises:
        CheckpointError: a tensor does not fit float16.
        ParityError: a graph is not valid ONNX.
    """
    folder = bundle.path / f"{quantized.precision}-{quantized.record.key[:8]}"
    rest = PRECISIONS[quantized.precision].rest
    with atomic.new_folder(folder) as staging:
        progress("writing weights", 0.0)
        stored = write_quantized_weights(
            weights, quantized.quantization, quantized.smoothing, rest, staging / WEIGHTS_NAME
        )
        if quantized.sensitivity is not None:
            (staging / SENSITIVITY_NAME).write_text(quantized.sensitivity.to_json(), encoding="utf-8")
        records = []
        for index, graph in enumerate(base.graphs):
            progress(f"measuring {Path(graph.path).name}", 0.1 + 0.9 * index / len(base.graphs))
            records.append(_write_graph(bundle, graph, quantized, stored, staging, folder.name, cases))
    return _switch(bundle, folder, quantized, tuple(records))


def _write_graph(
    bundle: Bundle,
    source: GraphRecord,
    quantized: QuantizedSet,
    stored: dict[str, StoredTensor],
    staging: Path,
    folder: str,
    cases: Sequence[CheckCase],
) -> GraphRecord:
    manifest, name = bundle.manifest, Path(source.path).name
    graph = _graph(bundle, source, quantized, stored)
    path = staging / name
    path.write_bytes(graph.model.SerializeToString(deterministic=True))
    record = GraphRecord(source.kind, source.bucket, f"{folder}/{name}", graph.inputs, graph.outputs)
    fixed = set(manifest.buckets(quantized.record.base))
    own = [
        case
        for case in cases
        if (case.input.grid not in fixed if source.grid is None else case.input.grid == source.grid)
    ]
    disabled = ORT_DISABLED_OPTIMIZERS[quantized.quantization.kind]
    return measure_graph(path, record, own or cases[:1], manifest.vision, disabled)


def _graph(
    bundle: Bundle, source: GraphRecord, quantized: QuantizedSet, stored: dict[str, StoredTensor]
) -> EncoderGraph:
    vision, rest = bundle.manifest.vision, PRECISIONS[quantized.precision].rest
    if source.grid is None:
        return dynamic_graph(vision, rest, stored, WEIGHTS_NAME, quantized.quantization)
    if source.kind == "image_uint8":
        constants = bundle.manifest.preprocessing
        return image_graph(vision, constants, source.grid, rest, stored, WEIGHTS_NAME, quantized.quantization)
    return fixed_graph(vision, source.grid, rest, stored, WEIGHTS_NAME, quantized.quantization)


def _switch(bundle: Bundle, folder: Path, quantized: QuantizedSet, graphs: tuple[GraphRecord, ...]) -> PrecisionSet:
    """Point the manifest at the new set, then delete the one that it replaces, with its engines."""
    manifest = open_bundle(bundle.path, verify=False).manifest  # read again: calibration takes minutes
    sensitivity = None if quantized.sensitivity is None else f"{folder.name}/{SENSITIVITY_NAME}"
    made = PrecisionSet(
        quantized.precision,
        f"{folder.name}/{WEIGHTS_NAME}",
        graphs,
        replace(quantized.record, sensitivity=sensitivity),
    )
    replaced = next((item for item in manifest.precisions if item.precision == quantized.precision), None)
    old = None if replaced is None else replaced.weights.split("/")[0]
    gone = {folder.name, old}
    files = [record for record in manifest.files if record.path.split("/")[0] not in gone]
    files += [record_file(bundle.path, file) for file in sorted(folder.iterdir())]
    others = tuple(item for item in manifest.precisions if item is not replaced)
    # Engines of the old graphs would be refused when loaded.
    stale = {file for engine in manifest.engines if engine.precision == quantized.precision for file in engine.files}
    engines = tuple(engine for engine in manifest.engines if engine.precision != quantized.precision)
    files = [record for record in files if record.path not in stale]
    replace(manifest, precisions=(*others, made), files=tuple(files), engines=engines).write(bundle.path)
    for path in stale:
        (bundle.path / path).unlink(missing_ok=True)
    if old is not None and old != folder.name:
        shutil.rmtree(bundle.path / old, ignore_errors=True)
    return made
