"""Every graph in ONNX Runtime compared with the PyTorch encoder, on pixels of pictures, before a bundle is written."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.distance import Distance, distance
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.golden import golden_input
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.measurements import OutputParity
from qwen3vl_edge.contract.bundle.position_tables import position_inputs
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder, run_torch_encoder
from qwen3vl_edge.contract.errors import ParityError
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads
from qwen3vl_edge.export.onnx.check_pixels import drawn_input, picture_input
from qwen3vl_edge.export.onnx.headroom import LayerRanges
from qwen3vl_edge.export.onnx.observe_torch import largest_weights, observed

Outputs = list[NDArray[Any]]


@dataclass(frozen=True)
class CheckCase:
    """One picture or clip, and the outputs of the encoder that a graph of it is compared with."""

    input: EncoderInput
    reference: Outputs


@dataclass(frozen=True)
class References:
    """What PyTorch gives for the check's pictures, and what its layers hold meanwhile.

    Attributes:
        cases: drawn pictures, given ones, and the golden ones.
        golden: outputs of the golden picture of each grid.
        ranges: of every layer, over all of them.
        weights: largest magnitude of each linear's weights.
    """

    cases: list[CheckCase]
    golden: dict[Grid, Outputs]
    ranges: LayerRanges
    weights: dict[str, float]


def run_references(
    checkpoint: Checkpoint,
    spec: VisionSpec,
    preprocessing: Preprocessing,
    grids: Sequence[Grid],
    golden: Sequence[Grid],
    pictures: Sequence[tuple[Grid, NDArray[np.uint8]]] = (),
    progress: Callable[[float], None] = lambda done: None,
) -> References:
    """Run PyTorch on a picture of each grid; the PyTorch encoder is freed before returning.

    Args:
        golden: grids whose golden picture is run too.
        pictures: given ones, uint8 [H, W, 3] RGB, with the grid of each one's size.
    """
    encoder = load_torch_encoder(checkpoint)
    draw = [partial(drawn_input, grid, spec, preprocessing, seed=index) for index, grid in enumerate(grids)]
    draw += [partial(picture_input, grid, pixels, spec, preprocessing) for grid, pixels in pictures]
    draw += [partial(golden_input, grid, spec, preprocessing) for grid in golden]
    cases = []
    with observed(encoder, spec) as ranges:
        for drawn in (picture() for picture in draw):
            cases.append(CheckCase(drawn, run_torch_encoder(encoder, drawn.grid, drawn.pixel_values)))
            progress(len(cases) / len(draw))
    weights = largest_weights(encoder, spec)
    del encoder
    gc.collect()
    count = len(grids) + len(pictures)
    return References(cases, {case.input.grid: case.reference for case in cases[count:]}, ranges, weights)


def dynamic_check_grids(grids: Sequence[Grid], merge_size: int) -> list[Grid]:
    """Grids for the dynamic-shape graph that no bucket has: a small image and a clip of two temporal patches."""
    extra = [Grid(1, 3 * merge_size, 5 * merge_size), Grid(2, 2 * merge_size, 3 * merge_size)]
    return [grid for grid in extra if grid not in grids]


def check_graph(
    path: Path, record: GraphRecord, cases: Sequence[CheckCase], spec: VisionSpec, precision: str
) -> GraphRecord:
    """Check one graph's structure and outputs.

    Returns:
        The record with the measured distances.

    Raises:
        ParityError: not a valid ONNX graph, or an output outside its tolerance.
    """
    measured = measure_graph(path, record, cases, spec)
    for row in measured.parity:
        _judge(record, row, precision)
    return measured


def measure_graph(
    path: Path,
    record: GraphRecord,
    cases: Sequence[CheckCase],
    spec: VisionSpec,
    disabled_optimizers: Collection[str] = (),
) -> GraphRecord:
    """Check one graph's structure and record its distance from the cases' references, without a limit.

    A graph that takes uint8 pixels skips the cases without them.

    Returns:
        The record with the measured distances.

    Raises:
        ParityError: not a valid ONNX graph.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # checker and shape inference raise kinds of their own
        raise ParityError(f"graph {record.path} is not valid ONNX ({error})", field=record.path) from None
    session = _session(path, disabled_optimizers)
    worst: dict[str, Distance] = {}
    for case in cases:
        if record.kind == "image_uint8" and case.input.pixels is None:
            continue
        outputs = session.run(list(spec.output_names), _feeds(record, case.input, spec))
        for name, actual, expected in zip(spec.output_names, outputs, case.reference, strict=True):
            apart = distance(actual, expected)
            worst[name] = apart.worst(worst[name]) if name in worst else apart
    rows = tuple(OutputParity(name, **asdict(value)) for name, value in worst.items())
    return replace(record, parity=rows)


def _session(path: Path, disabled_optimizers: Collection[str]) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = cpu_threads()
    settings.log_severity_level = 3
    # One run does not repay packed copies of the weights, which would double the memory.
    settings.add_session_config_entry("session.disable_prepacking", "1")
    settings.enable_cpu_mem_arena = False
    return ort.InferenceSession(
        str(path), settings, providers=["CPUExecutionProvider"], disabled_optimizers=set(disabled_optimizers)
    )


def _feeds(record: GraphRecord, item: EncoderInput, spec: VisionSpec) -> dict[str, NDArray[Any]]:
    if record.kind == "image_uint8":
        assert item.pixels is not None
        return {"pixels": item.pixels}
    feeds: dict[str, NDArray[Any]] = {"pixel_values": item.pixel_values}
    return feeds | position_inputs(spec, item.grid) if record.kind == "dynamic" else feeds


def _judge(record: GraphRecord, row: OutputParity, precision: str) -> None:
    limit = PRECISIONS[precision]
    if not limit.accepts(row.cosine, row.relative_l2):
        raise ParityError(
            f"graph {record.path} misses its {precision} tolerance at output {row.output}; no bundle was written",
            field=row.output,
            expected=f"cosine >= {limit.min_cosine}, relative L2 <= {limit.max_relative_l2}",
            got=f"cosine {row.cosine:.7f}, relative L2 {row.relative_l2:.2e}",
            remedy="Export with --precision fp32." if precision == "fp16" else None,
        )
