"""The bundle's `manifest.json`: files of the folder, their model, and their measurements.

BUNDLE/
  manifest.json
  processor/          config.json, tokenizer, preprocessor and chat template of the checkpoint
  fp32/weights.bin    one set of weights, shared by every graph of this precision
  fp32/1x28x28.onnx   one graph per bucket
  fp32/dynamic.onnx   the dynamic-shape graph
  fp32/golden.npz     what its graphs must make of drawn pictures, see contract/bundle/golden.py
  int8-9f3c21ab/      a set written by `qwen3vl-edge calibrate`, named after its key
  calibration/        statistics of the activations, reused by later calibrations; not a part of the bundle
  wire/basis-9f3c21ab.safetensors   written by `qwen3vl-edge fit-basis`, see contract/wire/basis.py
  engines/            built by `qwen3vl-edge build`, see contract/bundle/trt_plans.py
  .edit.lock          empty; locked while the manifest is replaced, see contract/bundle/edit.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.bundle.measurements import BasisRecord, CalibrationRecord, LayerHeadroom, OutputParity
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord, TensorSpec, check_engine_record
from qwen3vl_edge.contract.errors import BundleError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.formats.dataclass_json import from_json
from qwen3vl_edge.contract.pixels.policy import ALL_FRAMES, EACH_FRAME, PIXEL_POLICIES, PixelPolicy

SCHEMA_VERSION = 6
# 2 added `engines`, 3 `calibration`, 4 `basis`, 5 `golden`, 6 `pixels`, `headroom`, `figures`, `kernels`; older ones
# have none of them
READABLE_SCHEMAS = (1, 2, 3, 4, 5, 6)
MANIFEST_NAME = "manifest.json"
GRAPH_KINDS = ("fixed", "dynamic", "image_uint8")
_UNUSED_LIMITS = ("image_min_pixels", "image_max_pixels")


@dataclass(frozen=True)
class FileRecord:
    """One file of the bundle; `path` is relative to it, with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphRecord:
    """One ONNX graph.

    Attributes:
        kind: "fixed" (pixel_values of one bucket), "dynamic" (any grid, tables as inputs) or
            "image_uint8" (uint8 [H, W, 3] RGB of one image bucket, preprocessing in the graph).
        bucket: the grid as text (`"1x28x28"`), None for the dynamic graph.
    """

    kind: str
    bucket: str | None
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: tuple[OutputParity, ...] = ()

    @property
    def grid(self) -> Grid | None:
        return None if self.bucket is None else Grid.parse(self.bucket)


@dataclass(frozen=True)
class PrecisionSet:
    """The graphs of one precision and the weights file that they share.

    Attributes:
        golden: file of the pairs by which an engine proves itself (contract/bundle/golden.py); None in older bundles.
        headroom: of each layer, in the order they run; empty without float16, and in older bundles.
    """

    precision: str
    weights: str
    graphs: tuple[GraphRecord, ...]
    calibration: CalibrationRecord | None = None
    golden: str | None = None
    headroom: tuple[LayerHeadroom, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the set's files: weights, graphs, golden pairs and measured sensitivity, where there are some."""
        sensitivity = None if self.calibration is None else self.calibration.sensitivity
        paths = (self.weights, *(graph.path for graph in self.graphs), self.golden, sensitivity)
        return tuple(path for path in paths if path is not None)


@dataclass(frozen=True)
class ModelIdentity:
    """The checkpoint that the encoder was taken from."""

    id: str
    model_type: str
    model_hash: str


@dataclass(frozen=True)
class VisionSpec:
    """The encoder's dimensions, from the checkpoint's vision configuration."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    in_channels: int
    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    hidden_act: str
    rope_theta: float = 10000.0

    @property
    def geometry(self) -> PatchGeometry:
        return PatchGeometry(self.patch_size, self.merge_size, self.temporal_patch_size)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Width of a `pixel_values` row: channels · temporal patch · patch²."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def deepstack_mergers(self) -> tuple[int, ...]:
        """For each output `deepstack.k`, which of the encoder's DeepStack mergers makes it.

        Merger i belongs to layer `deepstack_visual_indexes[i]`, and transformers gives the levels in the order of
        their layers (`Qwen3VLVisionModel.forward`).
        """
        layers = self.deepstack_visual_indexes
        return tuple(sorted(range(len(layers)), key=layers.__getitem__))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Graph outputs in order: `embeds`, then one `deepstack.k` per level."""
        return ("embeds", *(f"deepstack.{level}" for level in range(len(self.deepstack_visual_indexes))))


@dataclass(frozen=True)
class Preprocessing:
    """Constants that turn RGB bytes into `pixel_values`, from the checkpoint's image processor.

    Attributes:
        video_mean, video_std: of its video processor; empty in bundles that do not record them.
    """

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    video_mean: tuple[float, ...] = ()
    video_std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`.

    Attributes:
        pixels: between which limits pictures and clips are resized; None in older bundles, see `Bundle.pixels`.
    """

    model: ModelIdentity
    vision: VisionSpec
    preprocessing: Preprocessing
    precisions: tuple[PrecisionSet, ...]
    processor: tuple[str, ...]
    files: tuple[FileRecord, ...]
    tools: dict[str, str] = field(default_factory=dict)
    engines: tuple[EngineRecord, ...] = ()
    basis: BasisRecord | None = None
    pixels: PixelPolicy | None = None
    schema_version: int = SCHEMA_VERSION

    def precision(self, name: str | None = None) -> PrecisionSet:
        """The set of that name, or the first.

        Raises:
            BundleError: the bundle has no such precision.
        """
        for item in self.precisions:
            if name is None or item.precision == name:
                return item
        raise BundleError(
            "the bundle has no such precision",
            field="precision",
            expected=", ".join(item.precision for item in self.precisions),
            got=name,
        )

    def set_for(self, precision: str) -> PrecisionSet:
        """The set that stands for a precision: its own; for a backend that computes from the checkpoint in one that the
        bundle has no set of, the first that is not quantized, else the first."""
        plain = [item for item in self.precisions if PRECISIONS[item.precision].quantized is None]
        own = [item for item in self.precisions if item.precision == precision]
        return next(iter([*own, *plain, *self.precisions]))

    def buckets(self, precision: str | None = None) -> list[Grid]:
        """Grids served by fixed-bucket graphs."""
        return [
            Grid.parse(graph.bucket)
            for graph in self.precision(precision).graphs
            if graph.kind == "fixed" and graph.bucket is not None
        ]

    def has_dynamic(self, precision: str | None = None) -> bool:
        return any(graph.kind == "dynamic" for graph in self.precision(precision).graphs)

    def file(self, path: str) -> FileRecord:
        """The record of a file; every path that the manifest names has one."""
        return next(record for record in self.files if record.path == path)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def named_files(self) -> tuple[str, ...]:
        """Paths of all files that the manifest's parts refer to, relative to the bundle."""
        paths = [*self.processor]
        for item in self.precisions:
            paths += item.files
        for engine in self.engines:
            paths += engine.files
        if self.basis is not None:
            paths.append(self.basis.path)
        return tuple(paths)

    def write(self, bundle: Path) -> None:
        """Write `manifest.json` atomically. Use `contract.bundle.edit` for a bundle that others may open."""
        atomic.write_bytes(bundle / MANIFEST_NAME, self.to_json().encode())


def parse_manifest(text: str, source: str = MANIFEST_NAME) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: names the key that is missing, unknown, of the wrong type or inconsistent.
    """
    try:
        document: Any = json.loads(text)
    except ValueError:
        raise BundleError(f"{source} is not JSON", field=source, remedy="Export the bundle again.") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in READABLE_SCHEMAS:
        raise BundleError(
            f"{source} has an unsupported schema",
            field="schema_version",
            expected=" or ".join(map(str, READABLE_SCHEMAS)),
            got=version,
            remedy="Export the bundle again with this release.",
        )
    if isinstance(constants := document.get("preprocessing"), dict):  # older: limits that nothing obeyed
        constants = {name: value for name, value in constants.items() if name not in _UNUSED_LIMITS}
        document = document | {"preprocessing": constants}
    manifest = from_json(Manifest, document | {"schema_version": SCHEMA_VERSION}, source)
    check_consistent(manifest, source)
    return manifest


def check_consistent(manifest: Manifest, source: str = MANIFEST_NAME) -> None:
    """Check that the parts of a manifest are consistent, and that each file they name has a record.

    Raises:
        BundleError, BucketError: names the key at fault.
    """
    known = {record.path for record in manifest.files}
    for record in manifest.files:
        if record.path.startswith(("/", "\\")) or ".." in Path(record.path).parts:
            raise BundleError(f"{source} names a file outside the bundle", field="files", got=record.path)
    names = [item.precision for item in manifest.precisions]
    if not names or len(set(names)) != len(names) or not set(names) <= set(PRECISIONS):
        raise BundleError(
            f"{source} has unknown or repeated precisions",
            field="precisions",
            expected=" or ".join(PRECISIONS),
            got=names,
        )
    for item in manifest.precisions:
        for graph in item.graphs:
            if graph.kind not in GRAPH_KINDS or (graph.kind == "dynamic") != (graph.bucket is None):
                raise BundleError(f"{source}: graph {graph.path} has an unknown kind", field="kind", got=graph.kind)
            if graph.bucket is not None:
                Grid.parse(graph.bucket)
            outputs = tuple(spec.name for spec in graph.outputs)
            if outputs != manifest.vision.output_names:
                raise BundleError(
                    f"{source}: graph {graph.path} has unexpected outputs",
                    field="outputs",
                    expected=manifest.vision.output_names,
                    got=outputs,
                )
    for engine in manifest.engines:
        check_engine_record(engine, source)
    if manifest.pixels is not None:
        _check_pixels(manifest.pixels, manifest.vision, source)
    for path in manifest.named_files:
        if path not in known:
            raise BundleError(f"{source} does not record {path}", field="files")


def _check_pixels(pixels: PixelPolicy, vision: VisionSpec, source: str) -> None:
    units = (pixels.factor, pixels.temporal)
    numbers = [pixels.image.min_pixels, pixels.image.max_pixels, pixels.video.min_pixels, pixels.video.max_pixels]
    numbers += [value for value in (pixels.video.frame_max_pixels, pixels.video.total_pixels) if value is not None]
    for name, value, expected, valid in (
        ("name", pixels.name, " or ".join(PIXEL_POLICIES), pixels.name in PIXEL_POLICIES),
        (
            "video.bounds",
            pixels.video.bounds,
            f"{ALL_FRAMES} or {EACH_FRAME}",
            pixels.video.bounds in (ALL_FRAMES, EACH_FRAME),
        ),
        ("factor", units, (vision.geometry.factor, vision.temporal_patch_size), None),
        ("limits", numbers, "numbers above 0", min(numbers) > 0),
    ):
        if not (value == expected if valid is None else valid):
            raise BundleError(
                f"{source} has an invalid pixel policy", field=f"pixels.{name}", expected=expected, got=value
            )
