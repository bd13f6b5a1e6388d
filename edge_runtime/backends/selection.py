"""Which graph of a bundle serves a grid, and which TensorRT engine of it this machine may run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, PrecisionSet, VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.position_tables import position_inputs
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord
from qwen3vl_edge.contract.errors import BucketError, EngineError
from qwen3vl_edge.contract.machine.gpu import Gpu
from qwen3vl_edge.contract.machine.tensorrt_library import rtx_takes


def choose_graph(graphs: PrecisionSet, grid: Grid) -> GraphRecord:
    """The fixed graph of that grid, or the dynamic-shape graph.

    Raises:
        BucketError: the bundle has neither.
    """
    fixed = {graph.bucket: graph for graph in graphs.graphs if graph.kind == "fixed"}
    dynamic = next((graph for graph in graphs.graphs if graph.kind == "dynamic"), None)
    graph = fixed.get(str(grid)) or dynamic
    if graph is None:
        raise BucketError(
            f"the bundle has no graph for grid {grid}",
            field="buckets",
            expected=", ".join(str(name) for name in fixed),
            remedy="Export it with that bucket or with the dynamic-shape graph.",
        )
    return graph


def pixel_graph(graphs: PrecisionSet, grid: Grid) -> GraphRecord | None:
    """The graph that takes uint8 pixels of that grid, None where the bundle has none."""
    return next((graph for graph in graphs.graphs if graph.kind == "image_uint8" and graph.grid == grid), None)


def graph_inputs(
    vision: VisionSpec, graph: GraphRecord, grid: Grid, pixel_values: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name: the patches, and the tables of the grid where they are not baked in."""
    feeds: dict[str, NDArray[Any]] = {"pixel_values": pixel_values}
    return feeds | position_inputs(vision, grid) if graph.kind == "dynamic" else feeds


def float32_layers(bundle: Bundle, precision: str) -> list[str]:
    """Layers that the bundle's own set of that precision keeps in float32 (`export/onnx/headroom.py`)."""
    sets = [item for item in bundle.manifest.precisions if item.precision == precision == "fp16"]
    return [layer.layer for item in sets for layer in item.headroom if layer.precision == "fp32"]


def choose_engine(
    bundle: Bundle, library: str, version: str, gpu: Gpu | None, precision: str | None = None, target: str | None = None
) -> EngineRecord:
    """The first engine of the bundle for this library, precision and target that fits this machine.

    Args:
        library: "tensorrt" or "tensorrt_rtx".
        version: of the library that is installed here.
        gpu: the GPU of this machine, None where it has none.
        precision, target: None takes any.

    Raises:
        EngineError: the bundle has none, or none that fits; names the reason and the command that builds it.
    """
    candidates = [
        record
        for record in bundle.manifest.engines
        if record.library == library and precision in (None, record.precision) and target in (None, record.target)
    ]
    if not candidates:
        built = ", ".join(f"{item.target} {item.precision} ({item.library})" for item in bundle.manifest.engines)
        raise EngineError(
            f"bundle {bundle.path} has no {library} engine for this precision and target",
            field="--backend",
            expected=f"one of: {built or 'none built yet'}",
            remedy=f"Build it with: qwen3vl-edge build {bundle.path} --target {target or 'this-gpu'}",
        )
    reasons = [unfit(bundle, record, version, gpu) for record in candidates]
    for record, reason in zip(candidates, reasons, strict=True):
        if reason is None:
            return record
    remedy = f"Rebuild it with: {rebuild_command(bundle, candidates[0])}"
    if gpu is None:
        remedy = "Run it on a machine with such a GPU and its driver, or take --backend onnxruntime."
    elif library == "tensorrt_rtx" and not rtx_takes(gpu.compute_capability):
        remedy = "Run without an engine: --backend pytorch --device cuda, or --backend onnxruntime --provider cuda."
    raise EngineError(
        f"the engine for {candidates[0].target} cannot run here: {reasons[0]}", field="--backend", remedy=remedy
    )


def unfit(bundle: Bundle, record: EngineRecord, version: str, gpu: Gpu | None) -> str | None:
    """Why an engine cannot run here, or None where it can."""
    if version != record.library_version:
        return f"it was built with {record.library} {record.library_version}, and here is {version}"
    if gpu is None:
        return f"it needs a GPU of compute capability {', '.join(record.compute_capabilities)}, and none was found"
    if record.library == "tensorrt_rtx" and not rtx_takes(gpu.compute_capability):
        return f"TensorRT-RTX does not take this GPU, {gpu}"
    if not record.runs_on(gpu.compute_capability):
        return f"it was built for compute capability {', '.join(record.compute_capabilities)}, and here is {gpu}"
    manifest = bundle.manifest
    if manifest.file(manifest.precision(record.precision).weights).sha256 != record.weights_sha256:
        return "it was built from other weights than the bundle's"
    for plan in record.plans:
        if manifest.file(plan.graph).sha256 != plan.graph_sha256:
            return f"it was built from another {plan.graph} than the bundle's"
    return None


def rebuild_command(bundle: Bundle, record: EngineRecord) -> str:
    """The command that builds this engine again."""
    return f"qwen3vl-edge build {bundle.path} --target {record.target} --precision {record.precision}"
