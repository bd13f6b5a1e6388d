"""Export a checkpoint's encoder to a bundle: weights once per precision, a graph per bucket, each graph checked."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_edge.contract.bundle.edit import locked
from qwen3vl_edge.contract.bundle.golden import GOLDEN_NAME, dynamic_golden_grids, write_golden
from qwen3vl_edge.contract.bundle.grid import Grid, parse_image_buckets, parse_video_buckets
from qwen3vl_edge.contract.bundle.manifest import (
    MANIFEST_NAME,
    GraphRecord,
    Manifest,
    ModelIdentity,
    PrecisionSet,
    Preprocessing,
    VisionSpec,
)
from qwen3vl_edge.contract.bundle.measurements import LayerHeadroom
from qwen3vl_edge.contract.bundle.open import PROCESSOR_FOLDER, record_file
from qwen3vl_edge.contract.bundle.precision import EXPORTED, PRECISIONS
from qwen3vl_edge.contract.errors import BucketError, InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.pixels.from_checkpoint import read_pixel_policy
from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, PixelPolicy
from qwen3vl_edge.export.onnx.check import References, check_graph, dynamic_check_grids, run_references
from qwen3vl_edge.export.onnx.check_pixels import fit_picture
from qwen3vl_edge.export.onnx.encoder_graph import EncoderGraph, dynamic_graph, fixed_graph, image_graph
from qwen3vl_edge.export.onnx.headroom import float32_layers, judge_headroom
from qwen3vl_edge.export.onnx.weights import StoredTensor, check_tensors, write_weights
from qwen3vl_edge.export.vision_config import check_processor_geometry, read_preprocessing, read_vision_spec

Progress = Callable[[str, float], None]
WEIGHTS_NAME = "weights.bin"
TOOLS = ("torch", "transformers", "onnx", "numpy")


@dataclass(frozen=True)
class ExportPlan:
    """An export's options, checked against the checkpoint."""

    checkpoint: Checkpoint
    spec: VisionSpec
    preprocessing: Preprocessing
    pixels: PixelPolicy
    grids: tuple[Grid, ...]
    precisions: tuple[str, ...]
    dynamic: bool
    image_uint8: bool


def plan_export(
    model: str,
    image_buckets: str,
    video_buckets: str | None,
    precisions: Sequence[str],
    dynamic: bool = True,
    image_uint8: bool = True,
    pixel_policy: str = CHECKPOINT,
) -> ExportPlan:
    """Read the checkpoint's configuration and check the options against it.

    Raises:
        CheckpointError, BucketError, InputError: names what cannot be exported, and the remedy.
    """
    checkpoint = open_checkpoint(model)
    spec = read_vision_spec(checkpoint)
    grids = parse_image_buckets(image_buckets, spec.geometry)
    grids += parse_video_buckets(video_buckets or "", spec.geometry)
    if not grids and not dynamic:
        raise BucketError("nothing to export", field="--buckets", remedy="Give --buckets, --video or --dynamic.")
    unknown = [item for item in precisions if item not in EXPORTED]
    if unknown or not precisions or len(set(precisions)) != len(precisions):
        raise InputError(
            "unknown or repeated precisions",
            field="--precision",
            expected=" or ".join(EXPORTED),
            got=",".join(precisions) or "none",
        )
    preprocessing = read_preprocessing(checkpoint)
    check_processor_geometry(checkpoint, spec)
    pixels = read_pixel_policy(checkpoint.path, pixel_policy)
    check_tensors(checkpoint, spec)
    unique = tuple(dict.fromkeys(grids))
    return ExportPlan(checkpoint, spec, preprocessing, pixels, unique, tuple(precisions), dynamic, image_uint8)


def export_bundle(
    model: str,
    out: Path,
    *,
    image_buckets: str = "448x448",
    video_buckets: str | None = None,
    precisions: Sequence[str] = ("fp32",),
    dynamic: bool = True,
    image_uint8: bool = True,
    pictures: Sequence[NDArray[np.uint8]] = (),
    checked: bool = True,
    pixel_policy: str = CHECKPOINT,
    progress: Progress = lambda what, done: None,
) -> Manifest:
    """Export the encoder of a checkpoint; `out` is written whole or stays unchanged.

    Args:
        model: checkpoint folder or hub id.
        out: bundle folder; a bundle there is replaced, anything else there is refused.
        image_buckets: HEIGHTxWIDTH in pixels, comma separated.
        video_buckets: FRAMESxHEIGHTxWIDTH, comma separated.
        precisions: of "fp32", "fp16"; each gets a weights file of its own.
        dynamic: also write the graph that takes any grid.
        image_uint8: also write, per image bucket, the graph that takes uint8 pixels.
        pictures: uint8 [H, W, 3] RGB, to check the graphs with and to measure float16's headroom on, beside drawn ones.
        checked: each graph is compared with PyTorch, float16's headroom is measured, and the bundle gets golden pairs.
            False is for benches of random weights, which compare outputs themselves.
        pixel_policy: a key of `PIXEL_POLICIES`: between which limits pictures and clips are resized.
        progress: called with the current step and the share done, 0 to 1.

    Raises:
        CheckpointError, BucketError, InputError: as `plan_export`; or values that float32 does not hold.
        ParityError: a graph exceeds its tolerance against PyTorch.
    """
    out = out.absolute()  # "." has no name to rename to
    _check_replaceable(out)
    plan = plan_export(model, image_buckets, video_buckets, precisions, dynamic, image_uint8, pixel_policy)
    references = _references(plan, pictures, progress) if checked else None
    with atomic.new_folder(out, lock=locked) as staging:
        sets = []
        share = 0.7 / len(plan.precisions)
        for index, precision in enumerate(plan.precisions):
            part = _part(progress, 0.3 + share * index, share)
            item = _write_precision(plan, precision, staging, references, part)
            if references is not None:
                write_golden(staging / precision / GOLDEN_NAME, references.golden, plan.spec.output_names)
                item = replace(item, golden=f"{precision}/{GOLDEN_NAME}")
            sets.append(item)
        manifest = _manifest(plan, staging, tuple(sets))
        manifest.write(staging)
    return manifest


def _references(plan: ExportPlan, pictures: Sequence[NDArray[np.uint8]], progress: Progress) -> References:
    """What PyTorch gives for drawn, given and golden pictures."""
    extra = dynamic_check_grids(plan.grids, plan.spec.merge_size) if plan.dynamic else []
    golden = [*plan.grids, *(dynamic_golden_grids(plan.spec, plan.grids) if plan.dynamic else [])]
    return run_references(
        plan.checkpoint,
        plan.spec,
        plan.preprocessing,
        [*plan.grids, *extra],
        golden,
        _fitted(pictures, [*plan.grids, *extra], plan.spec),
        lambda done: progress("running PyTorch", 0.3 * done),
    )


def _check_replaceable(out: Path) -> None:
    """The replaced folder is deleted, so it must be a bundle: a mistake in --out must not delete a home folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        document = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict) or not {"schema_version", "vision"} <= document.keys():
        raise InputError(
            f"{out} exists and is not a bundle, so it is not replaced",
            field="--out",
            remedy="Give a new folder or an earlier bundle.",
        )


def _part(progress: Progress, start: float, share: float) -> Progress:
    return lambda what, done: progress(what, start + share * done)


def _write_precision(
    plan: ExportPlan, precision: str, staging: Path, references: References | None, progress: Progress
) -> PrecisionSet:
    folder = staging / precision
    folder.mkdir()
    headroom: tuple[LayerHeadroom, ...] = ()
    if references is not None and PRECISIONS[precision].rest == "fp16":
        headroom = judge_headroom(plan.spec, references.ranges, references.weights)
    weights = write_weights(
        plan.checkpoint,
        plan.spec,
        precision,
        folder / WEIGHTS_NAME,
        lambda done: progress(f"{precision}: writing weights", 0.2 * done),
        float32_layers(headroom),
    )
    graphs = _graphs(plan, precision, weights, float32_layers(headroom))
    records = []
    for index, (kind, grid, name, graph) in enumerate(graphs):
        progress(f"{precision}: checking {name}", 0.2 + 0.8 * index / len(graphs))
        path = folder / name
        path.write_bytes(graph.model.SerializeToString(deterministic=True))
        bucket = None if grid is None else str(grid)
        record = GraphRecord(kind, bucket, f"{precision}/{name}", graph.inputs, graph.outputs)
        if references is not None:
            own = [
                case
                for case in references.cases
                if (case.input.grid not in plan.grids[1:] if grid is None else case.input.grid == grid)
            ]
            record = check_graph(path, record, own, plan.spec, precision)
        records.append(record)
    return PrecisionSet(precision, f"{precision}/{WEIGHTS_NAME}", tuple(records), headroom=headroom)


def _fitted(
    pictures: Sequence[NDArray[np.uint8]], grids: Sequence[Grid], spec: VisionSpec
) -> list[tuple[Grid, NDArray[np.uint8]]]:
    """Given pictures at the sizes that are checked, one with the aspect ratio nearest to its own each."""
    images = [grid for grid in grids if grid.t == 1]
    if pictures and not images:
        raise InputError(
            "pictures are given and no image bucket", field="--images", remedy="Add --buckets or --dynamic."
        )
    return [fit_picture(picture, images, spec.geometry) for picture in pictures]


def _graphs(
    plan: ExportPlan, precision: str, weights: dict[str, StoredTensor], wide: frozenset[str]
) -> list[tuple[str, Grid | None, str, EncoderGraph]]:
    spec = plan.spec
    graphs: list[tuple[str, Grid | None, str, EncoderGraph]] = []
    for grid in plan.grids:
        graph = fixed_graph(spec, grid, precision, weights, WEIGHTS_NAME, float32_layers=wide)
        graphs.append(("fixed", grid, f"{grid}.onnx", graph))
        if plan.image_uint8 and grid.t == 1:
            graph = image_graph(spec, plan.preprocessing, grid, precision, weights, WEIGHTS_NAME, float32_layers=wide)
            graphs.append(("image_uint8", grid, f"{grid}.uint8.onnx", graph))
    if plan.dynamic:
        graph = dynamic_graph(spec, precision, weights, WEIGHTS_NAME, float32_layers=wide)
        graphs.append(("dynamic", None, "dynamic.onnx", graph))
    return graphs


def _manifest(plan: ExportPlan, staging: Path, sets: tuple[PrecisionSet, ...]) -> Manifest:
    processor = staging / PROCESSOR_FOLDER
    processor.mkdir()
    for file in plan.checkpoint.processor_files():
        shutil.copyfile(file, processor / file.name)
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    checkpoint = plan.checkpoint
    return Manifest(
        model=ModelIdentity(checkpoint.name, checkpoint.config["model_type"], checkpoint.model_hash),
        vision=plan.spec,
        preprocessing=plan.preprocessing,
        precisions=sets,
        processor=tuple(f"{PROCESSOR_FOLDER}/{file.name}" for file in sorted(processor.iterdir())),
        files=tuple(record_file(staging, file) for file in files),
        tools=_tool_versions(),
        pixels=plan.pixels,
    )


def _tool_versions() -> dict[str, str]:
    import onnxruntime

    versions = {name: importlib.metadata.version(name) for name in TOOLS}
    return {**versions, "onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
