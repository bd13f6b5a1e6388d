"""The encoder on ONNX Runtime: CPU by default, other execution providers by name."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import BucketError, InputError
from contract.grid import Grid
from contract.manifest import GraphRecord
from contract.position_tables import position_interpolation, rotary_cos_sin
from edge_runtime.engine import Embeddings, Engine, EngineOptions

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


class OnnxRuntimeEngine:
    """One session per graph, made when its bucket is first used; sessions are safe to share."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self._bundle = bundle
        self._set = bundle.manifest.precision(options.precision)
        self._fixed = {graph.bucket: graph for graph in self._set.graphs if graph.kind == "fixed"}
        self._dynamic = next((graph for graph in self._set.graphs if graph.kind == "dynamic"), None)
        self._providers = [_provider(options.provider)]
        self._threads = options.threads
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        graph = self._fixed.get(str(grid)) or self._dynamic
        if graph is None:
            raise BucketError(
                f"the bundle has no graph for grid {grid}",
                field="buckets",
                expected=", ".join(str(name) for name in self._fixed),
                remedy="Export it with that bucket or with the dynamic-shape graph.",
            )
        feeds: dict[str, NDArray[Any]] = {"pixel_values": pixel_values}
        if graph.kind == "dynamic":
            feeds |= self._tables(grid)
        outputs = self._session(graph).run(list(self._bundle.manifest.vision.output_names), feeds)
        return Embeddings(outputs[0], tuple(outputs[1:]))

    def close(self) -> None:
        self._sessions.clear()

    def _tables(self, grid: Grid) -> dict[str, NDArray[Any]]:
        vision = self._bundle.manifest.vision
        indices, weights = position_interpolation(grid, vision.merge_size, vision.num_position_embeddings)
        cos, sin = rotary_cos_sin(grid, vision.merge_size, vision.head_dim, vision.rope_theta)
        return {"position_indices": indices, "position_weights": weights, "rotary_cos": cos, "rotary_sin": sin}

    def _session(self, graph: GraphRecord) -> Any:
        with self._lock:
            if graph.path not in self._sessions:
                self._sessions[graph.path] = self._make_session(graph)
            return self._sessions[graph.path]

    def _make_session(self, graph: GraphRecord) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.log_severity_level = 3
        path = self._bundle.graph_path(graph)
        try:
            return ort.InferenceSession(str(path), settings, providers=self._providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise InputError(f"ONNX Runtime cannot load {path}: {error}", field=graph.path) from None


def _provider(name: str) -> str:
    available = ort.get_available_providers()
    if name not in PROVIDERS or PROVIDERS[name] not in available:
        here = [short for short, full in PROVIDERS.items() if full in available]
        raise InputError("provider is not available", field="--provider", expected=" or ".join(here), got=name)
    return PROVIDERS[name]


def load(bundle: Bundle, options: EngineOptions) -> Engine:
    """Load the ONNX Runtime engine.

    Raises:
        InputError: the provider is not in this build of ONNX Runtime.
        BundleError: the bundle has no such precision.
    """
    return OnnxRuntimeEngine(bundle, options)
