"""A build request, checked against the bundle, the target and this machine before any work is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, Manifest, PrecisionSet
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.trt_plans import LAYOUTS
from qwen3vl_edge.contract.errors import BucketError, EngineError, InputError
from qwen3vl_edge.contract.machine.gpu import Gpu, find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import (
    RTX_BEFORE_BLACKWELL,
    import_library,
    installed,
    rtx_takes,
    trt,
    using,
)
from qwen3vl_edge.export.tensorrt.targets import TARGETS, Target, find_target

# What encodes on a GPU for which no engine can be built here.
WITHOUT_ENGINE = "--backend pytorch --device cuda, or --backend onnxruntime --provider cuda"


@dataclass(frozen=True)
class BuildRequest:
    """Options of a build.

    Attributes:
        target: a name of `TARGETS` in `export/tensorrt/targets.py`.
        precision: of the bundle; None takes fp16 where bundle and target have it.
        buckets: to serve; None for all of the bundle.
        workspace: bytes; None for the target's.
        timing_cache: file; None keeps one beside the plans.
        report: the kernels of each bucket are listed in a file beside the plan.
    """

    target: str
    precision: str | None = None
    buckets: tuple[Grid, ...] | None = None
    layout: str = "profiles"
    workspace: int | None = None
    timing_cache: Path | None = None
    optimization_level: int | None = None
    strip_weights: bool = False
    report: bool = False


@dataclass(frozen=True)
class BuildJob:
    """A request checked against the bundle and this machine."""

    bundle: Bundle
    request: BuildRequest
    target: Target
    library: str
    version: str
    capabilities: tuple[str, ...]
    graphs: PrecisionSet
    buckets: tuple[Grid, ...]


def plan_build(bundle: Bundle, request: BuildRequest) -> BuildJob:
    """Check a request against the bundle, the target and this machine.

    Raises:
        EngineError, BucketError, InputError, BundleError: names the option that cannot be served.
    """
    target = find_target(request.target)
    gpu = find_gpu()
    command = build_command(bundle, request)
    library = _library(target, gpu, command)
    graphs = bundle.manifest.precision(_precision(bundle.manifest, target, request.precision))
    if request.layout not in LAYOUTS:
        raise InputError("no such layout", field="--layout", expected=" or ".join(LAYOUTS), got=request.layout)
    if request.strip_weights and gpu is None:
        raise EngineError(
            "stripping weights needs a CUDA driver at build time",
            field="--strip-weights",
            remedy=f"Build on the device: {command}",
        )
    if request.workspace is not None and 0 < target.memory < request.workspace:
        raise InputError(
            f"--workspace is more than the smallest {target.name} has",
            field="--workspace",
            expected=f"at most {target.memory // 2**30}GiB",
            got=f"{request.workspace} bytes",
        )
    if request.timing_cache is not None and library == "tensorrt_rtx":
        raise InputError(
            "TensorRT-RTX has no timing cache: it chooses kernels when the engine is loaded",
            field="--timing-cache",
            remedy="Leave it out.",
        )
    capabilities = target.compute_capabilities or (gpu.compute_capability if gpu else "",)
    with using(library):
        version = trt.__version__
    buckets = _buckets(bundle.manifest, graphs, request)
    return BuildJob(bundle, request, target, library, version, capabilities, graphs, buckets)


def _library(target: Target, gpu: Gpu | None, command: str) -> str:
    """The library to build with on this machine.

    Raises:
        EngineError: this machine cannot build for the target; names the command to run on the device.
    """
    if not target.ahead_of_time:
        here = "no GPU was found here" if gpu is None else f"here is {gpu}"
        if gpu is None or (target.compute_capabilities and gpu.compute_capability not in target.compute_capabilities):
            raise EngineError(
                f"engines for {target.name} are built on the device itself, and {here}",
                field="--target",
                expected=f"{target.devices}",
                remedy=f"Copy the bundle there and run: {command}",
            )
    if target.library != "any":
        import_library(target.library)
        return target.library
    for name in ("tensorrt", "tensorrt_rtx"):
        if installed(name):
            if name == "tensorrt_rtx" and gpu is not None and not rtx_takes(gpu.compute_capability):
                raise EngineError(
                    f"TensorRT-RTX does not take this GPU, {gpu}",
                    field="--target",
                    expected=f"compute capability {', '.join(RTX_BEFORE_BLACKWELL)}, 12.0 or later",
                    got=gpu.compute_capability,
                    remedy=f"Install tensorrt, or run without an engine: {WITHOUT_ENGINE}.",
                )
            return name
    import_library("tensorrt")
    raise AssertionError("unreachable: import_library raised")


def build_command(bundle: Bundle, request: BuildRequest) -> str:
    """The command of a request, to be run on another machine that the bundle is copied to."""
    words = ["qwen3vl-edge build", bundle.path.name, "--target", request.target]
    if request.precision is not None:
        words += ["--precision", request.precision]
    if request.layout != "profiles":
        words += ["--layout", request.layout]
    words += _bucket_options(bundle.manifest, request.buckets or ())
    if request.workspace is not None:
        words += ["--workspace", str(request.workspace)]
    if request.optimization_level is not None:
        words += ["--optimization-level", str(request.optimization_level)]
    if request.strip_weights:
        words.append("--strip-weights")
    if request.report:
        words.append("--report")
    return " ".join(words)


def _bucket_options(manifest: Manifest, buckets: Sequence[Grid]) -> list[str]:
    geometry = manifest.vision.geometry
    options: dict[str, list[str]] = {}
    for grid in buckets:
        size = "x".join(map(str, geometry.pixels(grid)))
        if grid.t > 1:
            options.setdefault("--video", []).append(f"{geometry.frames(grid)}x{size}")
        else:
            options.setdefault("--buckets", []).append(size)
    return [word for name, sizes in options.items() for word in (name, ",".join(sizes))]


def _precision(manifest: Manifest, target: Target, requested: str | None) -> str:
    available = [item.precision for item in manifest.precisions]
    usable = [name for name in available if name in target.precisions]
    if requested is not None and requested in available and requested not in target.precisions:
        raise EngineError(
            f"target {target.name} cannot compute {requested} ({target.devices})",
            field="--precision",
            expected=" or ".join(target.precisions),
            got=requested,
        )
    if requested is not None:
        return requested
    if not usable:
        raise EngineError(
            f"target {target.name} can compute none of the bundle's precisions",
            field="--precision",
            expected=" or ".join(target.precisions),
            got=", ".join(available),
            remedy="Export the bundle with --precision fp16.",
        )
    return "fp16" if "fp16" in usable else usable[0]


def _buckets(manifest: Manifest, graphs: PrecisionSet, request: BuildRequest) -> tuple[Grid, ...]:
    exported = manifest.buckets(graphs.precision)
    requested = tuple(exported) if request.buckets is None else request.buckets
    unknown = [grid for grid in requested if grid not in exported]
    # Profiles come from the dynamic-shape graph, which takes any grid; only then can a bucket be new.
    if request.layout == "per-bucket" and unknown:
        raise BucketError(
            f"the bundle has no graph for bucket {unknown[0]}",
            field="--buckets",
            expected=", ".join(map(str, exported)),
            remedy="Export it with that bucket, or use --layout profiles.",
        )
    if request.layout == "profiles" and not manifest.has_dynamic(graphs.precision):
        raise BucketError(
            "the layout profiles is built from the dynamic-shape graph, which this bundle lacks",
            field="--layout",
            remedy="Export with --dynamic, or use --layout per-bucket.",
        )
    if not requested:
        raise BucketError("nothing to build", field="--buckets", remedy="Give --buckets.")
    return requested


def build_key(job: BuildJob) -> str:
    """sha256 over all inputs of the plans."""
    files = [job.graphs.weights, *(graph.path for graph in graphs_to_build(job))]
    parts = {
        "library": [job.library, job.version],
        "capabilities": job.capabilities,
        "precision": job.graphs.precision,
        "buckets": [str(grid) for grid in job.buckets],
        "layout": job.request.layout,
        "workspace": workspace_of(job),
        "optimization_level": job.request.optimization_level,
        "strip_weights": job.request.strip_weights,
        "files": [job.bundle.manifest.file(path).sha256 for path in files],
    }
    if job.request.report:  # so that a plan which is built again for its report has a name of its own
        parts["report"] = True
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def workspace_of(job: BuildJob) -> int:
    return job.target.workspace if job.request.workspace is None else job.request.workspace


def graphs_to_build(job: BuildJob) -> list[GraphRecord]:
    """The graphs that are built: the dynamic-shape one, or one per bucket."""
    if job.request.layout == "profiles":
        return [graph for graph in job.graphs.graphs if graph.kind == "dynamic"]
    fixed = {graph.bucket: graph for graph in job.graphs.graphs if graph.kind == "fixed"}
    return [fixed[str(grid)] for grid in job.buckets]


def buildable_here() -> dict[str, str]:
    """Per target, why it cannot be built here; empty where it can."""
    gpu = find_gpu()
    reasons = {}
    for target in TARGETS.values():
        try:
            _library(target, gpu, f"qwen3vl-edge build BUNDLE --target {target.name}")
            reasons[target.name] = ""
        except EngineError as error:
            reasons[target.name] = str(error)
    return reasons
