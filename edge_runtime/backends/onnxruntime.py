"""The encoder on ONNX Runtime: CPU by default, other execution providers by name."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.grid import Grid
from contract.manifest import GraphRecord
from contract.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from edge_runtime.backends.providers import find_provider, make_session
from edge_runtime.engine import Embeddings, Engine, EngineOptions, Serves, bundle_serves
from edge_runtime.graph_choice import choose_graph, graph_inputs


class OnnxRuntimeEngine:
    """One session per graph, made when its bucket is first used; sessions are safe to share."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self._bundle = bundle
        self._set = bundle.manifest.precision(options.precision)
        self.precision = self._set.precision
        find_provider(options.provider)
        self._provider = options.provider
        self.name = "onnxruntime" if options.provider == "cpu" else f"onnxruntime-{options.provider}"
        self._threads = options.threads
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def serves(self) -> Serves:
        return bundle_serves(self._bundle, self.precision)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        graph = choose_graph(self._set, grid)
        feeds = graph_inputs(self._bundle.manifest.vision, graph, grid, pixel_values)
        outputs = self._session(graph).run(list(self._bundle.manifest.vision.output_names), feeds)
        return Embeddings(outputs[0], tuple(outputs[1:]))

    def close(self) -> None:
        self._sessions.clear()

    def check_provider(self) -> None:
        """Load one graph, so that a provider that does not start is known now and not at the first picture."""
        self._session(self._set.graphs[0])

    def _session(self, graph: GraphRecord) -> Any:
        with self._lock:
            if graph.path not in self._sessions:
                self._sessions[graph.path] = self._make_session(graph)
            return self._sessions[graph.path]

    def _make_session(self, graph: GraphRecord) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.log_severity_level = 3
        disabled = ORT_DISABLED_OPTIMIZERS[PRECISIONS[self.precision].quantized]
        return make_session(self._bundle.graph_path(graph), settings, self._provider, self._bundle, disabled)


def load(bundle: Bundle, options: EngineOptions) -> Engine:
    """Load the ONNX Runtime engine.

    Raises:
        InputError: no such provider, or one that does not start here.
        BundleError: the bundle has no such precision.
    """
    engine = OnnxRuntimeEngine(bundle, options)
    if options.provider != "cpu":
        engine.check_provider()
    return engine
