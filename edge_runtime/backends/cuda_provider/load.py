"""How the CUDA provider loads a graph: attention fused, memory bound, kernels captured, as far as each goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import EngineError, InputError
from qwen3vl_edge.edge_runtime.backends.onnx_graphs import GraphSession

logger = logging.getLogger("edge")
# The edits that are made; which do what: fused_attention.py, fewer_kernels.py.
USUAL: Sequence[str] = ("attention",)
CAPTURED = {"enable_cuda_graph": "1"}
MakeSession = Callable[..., Any]
"""Takes a graph's record, an edited copy of it or None, and more options of the provider."""


def edited(path: Path, heads: int, edits: Sequence[str] = USUAL) -> bytes:
    """A graph's copy for the CUDA provider; its weights stay in the file that it refers to.

    Args:
        heads: of each attention.
        edits: of "attention", "rotation", "gelu", in that order.

    Raises:
        InputError: the package onnx is missing.
    """
    try:
        import onnx
    except ImportError:
        raise InputError(
            "provider cuda needs the package onnx, to fuse attention",
            field="--provider",
            remedy="Install it with: pip install onnx. Or take --provider cuda-unfused, which is slower.",
        ) from None
    from qwen3vl_edge.edge_runtime.backends.cuda_provider.fewer_kernels import fuse_rotation, halve_gelu
    from qwen3vl_edge.edge_runtime.backends.cuda_provider.fused_attention import fuse_attention

    functions = {"attention": fuse_attention, "rotation": fuse_rotation, "gelu": halve_gelu}
    model = onnx.load(str(path), load_external_data=False)
    for name in edits:
        functions[name](model, heads)
    return bytes(model.SerializeToString())


def free_device_bytes() -> int | None:
    """Free memory of the first GPU, which ONNX Runtime's providers run on; None without cuda-bindings or a GPU."""
    try:
        from qwen3vl_edge.edge_runtime.backends.cuda import free_memory
    except ImportError:
        return None
    try:
        return free_memory()
    except (EngineError, RuntimeError):  # cuda-bindings raises the second where the driver is missing
        return None


def load_cuda_graph(
    bundle: Bundle, graph: GraphRecord, make_session: MakeSession, edits: Sequence[str] = USUAL, device: str = "cuda"
) -> Any:
    """A `BoundSession` of a graph whose shapes are fixed, a `GraphSession` of the dynamic-shape graph.

    What ONNX Runtime cannot capture runs bound, kernel by kernel.

    Args:
        edits: as `edited`.
        device: as ONNX Runtime names it.

    Raises:
        InputError: the provider does not start, or the package onnx is missing.
    """
    model = edited(bundle.graph_path(graph), bundle.manifest.vision.num_heads, edits)
    if graph.bucket is None:
        return GraphSession(make_session(graph, model), graph)
    try:
        from qwen3vl_edge.edge_runtime.backends.cuda_provider.bound_session import BoundSession
    except ImportError:
        logger.warning("cuda-bindings is not installed: pictures are copied to the GPU from pageable memory, slower")
        return GraphSession(make_session(graph, model), graph)
    bound: BoundSession | None = None
    try:
        bound = BoundSession(make_session(graph, model, CAPTURED), graph, device)
        bound.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in graph.inputs})  # type: ignore[arg-type]
    except Exception as error:  # ONNX Runtime's exceptions share no base class; another fault comes again below
        if bound is not None:
            bound.close()
        logger.warning("graph %s is slower, not captured as a CUDA graph: %s", graph.path, str(error).splitlines()[:1])
        return BoundSession(make_session(graph, model), graph, device)
    return bound
