"""Which engine of a bundle this machine may run; one that does not fit is refused with the command that rebuilds it."""

from __future__ import annotations

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.gpu import Gpu


def choose_engine(
    bundle: Bundle, library: str, version: str, gpu: Gpu | None, precision: str | None = None, target: str | None = None
) -> EngineRecord:
    """The first engine of the bundle for this library, precision and target that fits this machine.

    Args:
        library: "tensorrt" or "tensorrt_rtx", and the `version` of it that is installed here.
        gpu: the GPU here.
        precision, target: None takes any.

    Raises:
        EngineError: the bundle has none, or none that fits; names why and the command that builds it.
    """
    found = [
        record
        for record in bundle.manifest.engines
        if record.library == library and precision in (None, record.precision) and target in (None, record.target)
    ]
    if not found:
        held = ", ".join(f"{item.target} {item.precision} ({item.library})" for item in bundle.manifest.engines)
        raise EngineError(
            f"bundle {bundle.path} has no {library} engine for this precision and target",
            field="--backend",
            expected=f"one of: {held or 'none built yet'}",
            remedy=f"Build it with: qwen3vl-edge build {bundle.path} --target {target or 'this-gpu'}",
        )
    reasons = [unfit(bundle, record, version, gpu) for record in found]
    for record, reason in zip(found, reasons, strict=True):
        if reason is None:
            return record
    remedy = f"Rebuild it with: {rebuild_command(bundle, found[0])}"
    if gpu is None:
        remedy = "Run it on a machine with such a GPU and its driver, or take --backend onnxruntime."
    raise EngineError(
        f"the engine for {found[0].target} cannot run here: {reasons[0]}", field="--backend", remedy=remedy
    )


def unfit(bundle: Bundle, record: EngineRecord, version: str, gpu: Gpu | None) -> str | None:
    """Why an engine cannot run here, or None where it can."""
    if version != record.library_version:
        return f"it was built with {record.library} {record.library_version}, and here is {version}"
    if gpu is None:
        return f"it needs a GPU of compute capability {', '.join(record.compute_capabilities)}, and none was found"
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
