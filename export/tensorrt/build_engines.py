"""Build the engines of one target from a bundle's graphs, write them into the bundle, add them to the manifest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.edit import check_writable, edit
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, Manifest
from qwen3vl_edge.contract.bundle.open import open_bundle, record_file
from qwen3vl_edge.contract.bundle.trt_plans import ENGINE_FOLDER, EngineRecord, PlanRecord
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.export.tensorrt.build_job import (
    BuildJob,
    BuildRequest,
    build_key,
    graphs_to_build,
    plan_build,
    workspace_of,
)
from qwen3vl_edge.export.tensorrt.build_plan import PlanSettings, bucket_shapes, build_plan, layer_report
from qwen3vl_edge.export.tensorrt.build_progress import run_cancellable, stop_if
from qwen3vl_edge.export.tensorrt.kernels import KernelReport, kernels_of_inspector, kernels_of_log, read_kernels
from qwen3vl_edge.export.tensorrt.network import parse_graph

Progress = Callable[[str, float], None]
TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class BuildResult:
    """The engine's record in the manifest; `skipped` where the manifest had it before."""

    record: EngineRecord
    skipped: bool


def build_engines(path: Path, request: BuildRequest, progress: Progress = lambda what, done: None) -> BuildResult:
    """Build the engines of one target; skipped where nothing changed since they were built.

    Plans get names of their own and the manifest is replaced last: after any error the bundle and its engines are
    unchanged.

    Raises:
        BundleError: the bundle is missing, altered, not writable, or got other graphs during the build.
        EngineError: the target cannot be built here (with the command to run on the device), or the builder
            refuses a graph (with node, op and reason).
        BucketError, InputError: options that the bundle or the target cannot serve.
        KeyboardInterrupt: Ctrl-C; nothing is written.
    """
    return run_cancellable(lambda cancelled: _build(path, request, progress, cancelled))


def _build(path: Path, request: BuildRequest, progress: Progress, cancelled: threading.Event) -> BuildResult:
    job = plan_build(open_bundle(path), request)
    key = build_key(job)
    existing = _existing(job.bundle.manifest, job)
    with_report = build_key(replace(job, request=replace(request, report=True)))
    if existing is not None and existing.key in (key, with_report):  # a report too many is no reason to build again
        return BuildResult(existing, skipped=True)
    check_writable(path)
    started = time.perf_counter()
    written: list[Path] = []
    try:
        plans = _build_plans(job, key, written, progress, cancelled)
        record = EngineRecord(
            target=job.target.name,
            library=job.library,
            library_version=job.version,
            compute_capabilities=job.capabilities,
            precision=job.graphs.precision,
            layout=request.layout,
            weights_sha256=job.bundle.manifest.file(job.graphs.weights).sha256,
            key=key,
            seconds=round(time.perf_counter() - started, 3),
            plans=plans,
            stripped=request.strip_weights,
        )
        stop_if(cancelled)
        _record(job, record)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return BuildResult(record, skipped=False)


def _existing(manifest: Manifest, job: BuildJob) -> EngineRecord | None:
    same = (job.target.name, job.graphs.precision)
    return next((item for item in manifest.engines if (item.target, item.precision) == same), None)


def _build_plans(
    job: BuildJob, key: str, written: list[Path], progress: Progress, cancelled: threading.Event
) -> tuple[PlanRecord, ...]:
    graphs = graphs_to_build(job)
    settings = PlanSettings(
        library=job.library,
        compute_capabilities=_capabilities(job),
        workspace=workspace_of(job),
        optimization_level=job.request.optimization_level,
        timing_cache=_timing_cache(job),
        strip_weights=job.request.strip_weights,
    )
    records = []
    for index, graph in enumerate(graphs):
        if job.request.layout == "profiles":
            buckets, profiles = job.buckets, [bucket_shapes(graph.inputs, grid) for grid in job.buckets]
        else:
            buckets, profiles = (job.buckets[index],), []
        start = index / len(graphs)
        report = _part(progress, f"{job.target.name} {graph.bucket or 'profiles'}", start, 1 / len(graphs))
        report("parsing", 0.0)
        parsed = parse_graph(job.library, job.bundle.graph_path(graph), graph)
        stop_if(cancelled)
        plan = build_plan(parsed, graph, profiles, settings, report, cancelled)
        records.append(_write_plan(job, key, graph, buckets, plan, written, parsed.log.layers))
    return tuple(records)


def _part(progress: Progress, name: str, start: float, share: float) -> Progress:
    return lambda what, done: progress(f"{name}: {what}", start + share * done)


def _capabilities(job: BuildJob) -> tuple[tuple[int, int], ...] | None:
    if not job.target.compute_capabilities:
        return None
    exact = [item for item in job.capabilities if not item.endswith("+")]
    pairs = (item.split(".") for item in exact)
    return tuple((int(major), int(minor)) for major, minor in pairs)


def _timing_cache(job: BuildJob) -> Path | None:
    if job.library == "tensorrt_rtx":
        return None
    cache = job.request.timing_cache or job.bundle.path / ENGINE_FOLDER / job.target.name / TIMING_CACHE
    cache.parent.mkdir(parents=True, exist_ok=True)
    return cache


def _write_plan(
    job: BuildJob,
    key: str,
    graph: GraphRecord,
    buckets: Sequence[Grid],
    plan: Any,
    written: list[Path],
    logged_layers: str,
) -> PlanRecord:
    manifest, folder = job.bundle.manifest, job.bundle.path
    name = f"{graph.bucket or job.request.layout}-{key[:12]}"
    file = folder / ENGINE_FOLDER / job.target.name / job.graphs.precision / f"{name}.plan"
    layers = layer_report(job.library, plan)
    kernels = _kernels(logged_layers, layers, tuple(map(str, buckets))) if job.request.report else None

    def write(suffix: str, content: bytes | memoryview | None) -> str | None:
        if content is None:
            return None
        written.append(file.with_suffix(suffix))
        atomic.write_bytes(file.with_suffix(suffix), content)
        return file.with_suffix(suffix).relative_to(folder).as_posix()

    write(".plan", memoryview(plan))
    return PlanRecord(
        path=file.relative_to(folder).as_posix(),
        graph=graph.path,
        graph_sha256=manifest.file(graph.path).sha256,
        buckets=tuple(str(grid) for grid in buckets),
        inputs=graph.inputs,
        outputs=graph.outputs,
        layers=write(".layers.json", None if layers is None else layers.encode()),
        kernels=write(".kernels.json", None if kernels is None else kernels.to_json().encode()),
    )


def _kernels(logged: str, inspected: str | None, buckets: tuple[str, ...]) -> KernelReport | None:
    """The plan's kernels from the builder's log, else from the inspector; None where neither lists them."""
    if logged:
        return KernelReport(kernels_of_log(logged, buckets))
    return None if inspected is None else KernelReport(kernels_of_inspector(inspected, buckets))


def _record(job: BuildJob, record: EngineRecord) -> None:
    """Add the engine to the manifest, in place of the one of the same target and precision."""
    folder = job.bundle.path
    written = tuple(record_file(folder, folder / path) for path in record.files)
    with edit(folder, unchanged=[job.bundle.manifest.file(path) for path in job.graphs.files]) as change:
        replaced = _existing(change.manifest, job)
        others = tuple(item for item in change.manifest.engines if item is not replaced)
        change.manifest = replace(change.manifest, engines=(*others, record))
        change.written = written


def engine_json(path: Path, result: BuildResult) -> dict[str, Any]:
    """What `build --json` prints of a bundle's engine; with counts of kernels where it was built with a report."""
    rows = kernel_rows(path, result.record)
    return asdict(result.record) | {"skipped": result.skipped} | ({"kernels": rows} if rows else {})


def kernel_rows(path: Path, record: EngineRecord) -> list[dict[str, Any]]:
    """Counts of kernels for each bucket of an engine; empty where it was built without a report.

    Raises:
        BundleError: the file of a report is missing or altered.
    """
    reports = [read_kernels(path / plan.kernels) for plan in record.plans if plan.kernels is not None]
    return [bucket.summary() for report in reports for bucket in report.buckets]
