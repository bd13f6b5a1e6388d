"""A plan of the bundle to an engine on this GPU: read, checked, refitted where its weights were stripped."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord, PlanRecord, TensorSpec
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.tensorrt_library import CollectedLog, dimensions, logger_into, trt
from qwen3vl_edge.edge_runtime.backends.selection import rebuild_command


@dataclass(frozen=True)
class LoadedPlan:
    """A deserialized plan; the runtime must outlive its engine."""

    record: PlanRecord
    runtime: trt.Runtime
    engine: trt.ICudaEngine


def load_plan(bundle: Bundle, record: EngineRecord, plan: PlanRecord) -> LoadedPlan:
    """Deserialize a plan with the library in use and compare its tensors with its record.

    Raises:
        EngineError: the library refuses it, its tensors or profiles are other than recorded, or its weights
            cannot be refitted; names the command that rebuilds it.
    """
    log = CollectedLog()
    logger = logger_into(log)
    runtime = trt.Runtime(logger)
    with (bundle.path / plan.path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)  # mapped: a Jetson does not have memory for two copies
    remedy = f"Rebuild it with: {rebuild_command(bundle, record)}"
    if engine is None:
        raise EngineError(f"plan {plan.path} cannot be loaded ({log.reason()})", field=plan.path, remedy=remedy)
    if record.stripped:
        _refit(logger, log, engine, bundle, plan, remedy)
    tensors = {spec.name: spec for spec in engine_tensors(engine)}
    for want in (*plan.inputs, *plan.outputs):
        have = tensors.get(want.name)
        if have is None or have.dtype != want.dtype or not _fits(want, have):
            raise EngineError(f"plan {plan.path} has another {want.name} than recorded", field=want.name, remedy=remedy)
    if engine.num_optimization_profiles != len(plan.buckets):
        raise EngineError(
            f"plan {plan.path} has other profiles than recorded",
            field=plan.path,
            expected=len(plan.buckets),
            got=engine.num_optimization_profiles,
            remedy=remedy,
        )
    return LoadedPlan(plan, runtime, engine)


def engine_tensors(engine: trt.ICudaEngine) -> list[TensorSpec]:
    """The I/O table of an engine; a dimension that differs between profiles is "any"."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [
        TensorSpec(
            name,
            np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
            dimensions(engine.get_tensor_shape(name)),
        )
        for name in names
    ]


def _fits(want: TensorSpec, have: TensorSpec) -> bool:
    """Whether a shape is as recorded; the builder may fix a dimension that has one size in all profiles."""
    return len(want.shape) == len(have.shape) and all(
        isinstance(mine, str) or mine == theirs for mine, theirs in zip(want.shape, have.shape, strict=True)
    )


def _refit(
    logger: Any, log: CollectedLog, engine: trt.ICudaEngine, bundle: Bundle, plan: PlanRecord, remedy: str
) -> None:
    """Give a stripped engine the weights of the bundle, by way of the graph that refers to them."""
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(bundle.path / plan.graph)) or not refitter.refit_cuda_engine():
        raise EngineError(
            f"plan {plan.path} cannot be refitted from {plan.graph} ({log.reason()})", field=plan.path, remedy=remedy
        )
