"""Build one plan: profiles, builder configuration, the build through polygraphy, and a report of the layers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import CollectedLog, logger_into, trt, using
from qwen3vl_edge.export.tensorrt.build_progress import BuildProgress, Progress, progress_monitor, stop_if
from qwen3vl_edge.export.tensorrt.network import ParsedGraph
from qwen3vl_edge.export.tensorrt.polygraphy_backend import create_config_rtx, polygraphy_error, use_polygraphy

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class PlanSettings:
    """How to build a plan.

    Attributes:
        compute_capabilities: for tensorrt_rtx, as (8, 9); () for any GPU from Ampere on, None for the one here.
        workspace: bytes of scratch memory that the builder may plan with.
        timing_cache: read before and written after the build; None for none.
        strip_weights: leave the weights out of the plan, to be refitted when it is loaded.
    """

    library: str
    compute_capabilities: tuple[tuple[int, int], ...] | None
    workspace: int
    optimization_level: int | None = None
    timing_cache: Path | None = None
    strip_weights: bool = False


def bucket_shapes(inputs: Sequence[TensorSpec], grid: Grid) -> Shapes:
    """The one shape that each input has for a bucket: smallest, usual and largest of its profile."""
    return {spec.name: spec.shape_for(grid.patches, grid.patches_per_frame) for spec in inputs}


def build_plan(
    parsed: ParsedGraph,
    graph: GraphRecord,
    profiles: Sequence[Shapes],
    settings: PlanSettings,
    report: Progress,
    cancelled: threading.Event,
) -> Any:
    """Build a parsed graph; returns the plan as a buffer (`IHostMemory`).

    Args:
        profiles: in the order of the plan's optimization profiles; empty for a graph of fixed shapes.
        report: called with the builder's phase and the share done.
        cancelled: stops the builder at its next step.

    Raises:
        EngineError: the builder's reason.
        KeyboardInterrupt: `cancelled`, once the builder has stopped.
    """
    polygraphy = use_polygraphy(settings.library)
    with using(settings.library):
        monitor = progress_monitor(BuildProgress(report), cancelled)
    cache = settings.timing_cache
    fresh_cache = None if cache is None else cache.with_name(f".{cache.name}.new")

    network = (parsed.builder, parsed.network, parsed.parser)
    cache_out = None if fresh_cache is None else str(fresh_cache)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # polygraphy requests a timing cache of tensorrt_rtx
            config = builder_config(parsed, profiles, settings, monitor)
            plan = polygraphy.EngineBytesFromNetwork(network, config=lambda *_: config, save_timing_cache=cache_out)()
    except polygraphy_error():
        stop_if(cancelled)
        reason = parsed.log.reason()
        raise EngineError(f"{settings.library} cannot build {graph.path}: {reason}", field=graph.path) from None
    if cache is not None and fresh_cache is not None and fresh_cache.exists():
        fresh_cache.replace(cache)
        fresh_cache.with_name(fresh_cache.name + ".lock").unlink(missing_ok=True)
    return plan


def builder_config(
    parsed: ParsedGraph, profiles: Sequence[Shapes], settings: PlanSettings, monitor: Any = None
) -> trt.IBuilderConfig:
    """The builder configuration, without a flag that changes a dtype."""
    polygraphy = use_polygraphy(settings.library)
    with using(settings.library):
        arguments: dict[str, Any] = {
            "profiles": [_profile(polygraphy, shapes) for shapes in profiles],
            "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: settings.workspace},
            "builder_optimization_level": settings.optimization_level,
            "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,  # for the engine inspector
            "strip_plan": settings.strip_weights,
            "progress_monitor": monitor,
        }
        if settings.timing_cache is not None and settings.timing_cache.exists():
            arguments["load_timing_cache"] = str(settings.timing_cache)
        if settings.library == "tensorrt_rtx":
            capabilities = settings.compute_capabilities
            arguments["use_gpu"] = capabilities is None
            arguments["compute_capabilities"] = list(capabilities) if capabilities else None
            create = create_config_rtx()(**arguments)
        else:
            create = polygraphy.CreateConfig(**arguments)
        config: trt.IBuilderConfig = create(parsed.builder, parsed.network)
        # On by default, and would silently reduce a matrix product of fp32 to 10 bits of mantissa.
        config.clear_flag(trt.BuilderFlag.TF32)
        return config


def _profile(polygraphy: Any, shapes: Shapes) -> Any:
    profile = polygraphy.Profile()
    for name, shape in shapes.items():
        profile.add(name, min=shape, opt=shape, max=shape)
    return profile


def layer_report(library: str, plan: Any) -> str | None:
    """The engine inspector's JSON: kernels, precisions and fusions of a plan's layers.

    None where this machine has no GPU, or one that the plan is not for.
    """
    if find_gpu() is None:
        return None
    with using(library):
        engine = trt.Runtime(logger_into(CollectedLog())).deserialize_cuda_engine(plan)
        if engine is None:
            return None
        text: str = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        return text
