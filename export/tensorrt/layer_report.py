"""What the engine inspector says of a plan's layers: kernels, precisions, fusions. Needs a GPU that loads the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import CollectedLog, import_library, logger_into

if TYPE_CHECKING:
    import tensorrt as trt


def layer_report(library: str, plan: Any) -> str | None:
    """The inspector's JSON, or None where this machine has no GPU or one that the plan is not for."""
    if find_gpu() is None:
        return None
    if TYPE_CHECKING:
        module = trt
    else:
        module = import_library(library)
    engine = module.Runtime(logger_into(module, CollectedLog())).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text: str = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return text
