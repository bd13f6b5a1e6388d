"""What TensorRT-RTX has beyond TensorRT: a cache of the kernels that it compiles when a plan is loaded, and its own
CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.tensorrt_library import trt  # type-checked against tensorrt_rtx alone


def runtime_config(engine: trt.ICudaEngine, cache_file: Path) -> tuple[trt.IRuntimeConfig, trt.IRuntimeCache]:
    """Contexts that capture their own graphs, share a block of memory, and reuse the kernels of the last start."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    if cache_file.is_file():
        cache.deserialize(cache_file.read_bytes())  # it refuses one of another GPU or version by itself
    config.set_runtime_cache(cache)
    return config, cache


def save_runtime_cache(cache: trt.IRuntimeCache, cache_file: Path) -> None:
    """Write the compiled kernels beside the plan, so that the next start need not compile them."""
    kernels: Any = cache.serialize()
    try:
        atomic.write_bytes(cache_file, memoryview(kernels))
    except OSError:
        return  # a bundle on a read-only file system works too, but starts slower
