"""TensorRT plans of a bundle: which files, for which library and GPU, built from which graphs.

A plan is one serialized TensorRT engine; an engine record lists the plans of one target and precision.

BUNDLE/engines/<target>/<precision>/profiles-<key>.plan   one profile per bucket, weights once
BUNDLE/engines/<target>/<precision>/1x28x28-<key>.plan    or one plan per bucket
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import BundleError

LAYOUTS = ("profiles", "per-bucket")
LIBRARIES = ("tensorrt", "tensorrt_rtx")
ENGINE_FOLDER = "engines"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph or a plan: a symbolic dimension is a string, dtype as numpy names it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def shape_for(self, patches: int, frame_patches: int) -> tuple[int, ...]:
        """The shape for a picture of `patches` patches, `frame_patches` of them in each frame."""
        sizes = {"patches": patches, "frame_patches": frame_patches}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class PlanRecord:
    """One serialized engine.

    Attributes:
        path: the plan, relative to the bundle.
        graph: the ONNX graph that it was built from, relative to the bundle.
        graph_sha256: sha256 of that graph at build time.
        buckets: optimization profile i serves `buckets[i]`.
        inputs, outputs: the plan's I/O table; a dimension that differs between profiles is a string.
        layers: file with the engine inspector's JSON, relative to the bundle; None where no GPU could load the plan.
        kernels: file with the kernels of each bucket, relative to the bundle; None without `build --report`.
    """

    path: str
    graph: str
    graph_sha256: str
    buckets: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: str | None = None
    kernels: str | None = None


@dataclass(frozen=True)
class EngineRecord:
    """The plans of one target and precision.

    Attributes:
        target: a name of `export/tensorrt/targets.py`.
        library: "tensorrt" or "tensorrt_rtx", with the exact version that built it.
        compute_capabilities: GPUs that it runs on, as "8.7"; "8.0+" is that one and all later ones.
        weights_sha256: sha256 of that precision's weights file at build time.
        stripped: the plans hold no weights and are refitted from the bundle's when loaded.
        key: sha256 of the build's inputs; an equal key makes a new build unnecessary.
        seconds: duration of the build.
    """

    target: str
    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    layout: str
    weights_sha256: str
    key: str
    seconds: float
    plans: tuple[PlanRecord, ...]
    stripped: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the bundle that belongs to this engine."""
        paths = (path for plan in self.plans for path in (plan.path, plan.layers, plan.kernels))
        return tuple(path for path in paths if path is not None)

    def runs_on(self, compute_capability: str) -> bool:
        """Whether the plans run on a GPU of that compute capability ("8.9")."""
        return any(_covers(item, compute_capability) for item in self.compute_capabilities)


def _covers(item: str, compute_capability: str) -> bool:
    if item.endswith("+"):
        return _version(compute_capability) >= _version(item[:-1])
    return item == compute_capability


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def check_engine_record(record: EngineRecord, source: str) -> None:
    """Check the values that types alone do not constrain.

    Raises:
        BundleError: unknown library or layout, or no plans.
        BucketError: a bucket is not a grid.
    """
    for name, value, allowed in (("library", record.library, LIBRARIES), ("layout", record.layout, LAYOUTS)):
        if value not in allowed:
            raise BundleError(
                f"{source}: engine has an unknown {name}", field=name, expected=" or ".join(allowed), got=value
            )
    if not record.plans:
        raise BundleError(f"{source}: engine {record.target} has no plans", field="plans")
    for plan in record.plans:
        for bucket in plan.buckets:
            Grid.parse(bucket)
