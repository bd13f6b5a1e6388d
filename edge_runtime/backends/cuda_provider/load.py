"""How the CUDA provider loads a graph: attention fused, memory bound, kernels captured, as far as each goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.backends.onnx_graphs import GraphSession

logger = logging.getLogger("edge")
CAPTURED = {"enable_cuda_graph": "1"}
MakeSession = Callable[..., Any]
"""Takes a graph's record, an edited copy of it or None, and more options of the provider."""


def load_cuda_graph(bundle: Bundle, graph: GraphRecord, make_session: MakeSession, device: str = "cuda") -> Any:
    """A `BoundSession` of a graph whose shapes are fixed, a `GraphSession` of the dynamic-shape graph.

    What ONNX Runtime cannot capture runs bound, kernel by kernel.

    Args:
        device: as ONNX Runtime names it.

    Raises:
        InputError: the provider does not start, or the package onnx is missing.
    """
    try:
        from qwen3vl_edge.edge_runtime.backends.cuda_provider.fused_attention import fused_attention
    except ImportError:
        raise InputError(
            "provider cuda needs the package onnx, to fuse attention",
            field="--provider",
            remedy="Install it with: pip install onnx. Or take --provider cuda-unfused, which is slower.",
        ) from None
    model = fused_attention(bundle.graph_path(graph), bundle.manifest.vision.num_heads)
    if graph.bucket is None:
        return GraphSession(make_session(graph, model), graph)
    try:
        from qwen3vl_edge.edge_runtime.backends.cuda_provider.bound_session import BoundSession
    except ImportError:
        logger.warning("cuda-bindings is not installed: pictures are copied to the GPU from pageable memory, slower")
        return GraphSession(make_session(graph, model), graph)
    try:
        bound = BoundSession(make_session(graph, model, CAPTURED), graph, device)
        bound.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in graph.inputs})  # type: ignore[arg-type]
    except Exception as error:  # ONNX Runtime's exceptions share no base class; another fault comes again below
        logger.info("graph %s is not captured as a CUDA graph: %s", graph.path, str(error).splitlines()[:1])
        return BoundSession(make_session(graph, model), graph, device)
    return bound
