"""The encoder on OpenVINO: the fastest on most x86-64 CPUs, AMD's too, where ONNX Runtime's own is always there.

`openvino` computes what is not quantized in float32. `openvino-bf16` lets it use bfloat16 where the CPU has it:
nearly twice as fast there, and as far from float32 as any bfloat16 encoder; the name travels with every request.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import InputError
from contract.grid import Grid
from contract.manifest import GraphRecord
from edge_runtime.engine import Embeddings, Engine, EngineOptions, Serves, bundle_serves
from edge_runtime.graph_choice import choose_graph, graph_inputs

HINTS = {"openvino": "f32", "openvino-bf16": "bf16"}


class OpenvinoEngine:
    """One compiled model per graph, made when its bucket is first used; each picture gets all threads."""

    def __init__(self, name: str, bundle: Bundle, options: EngineOptions) -> None:
        self.name = name
        self._bundle = bundle
        self._set = bundle.manifest.precision(options.precision)
        self.precision = self._set.precision
        self._core = ov.Core()
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[name], "PERFORMANCE_HINT": "LATENCY"}
        if options.threads:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads
        self._requests: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def serves(self) -> Serves:
        return bundle_serves(self._bundle, self.precision)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        graph = choose_graph(self._set, grid)
        vision = self._bundle.manifest.vision
        with self._lock:  # a request holds its buffers; one at a time has all cores anyway
            request = self._request(graph)
            request.infer(graph_inputs(vision, graph, grid, pixel_values))
            outputs = [request.get_tensor(name).data.copy() for name in vision.output_names]
        return Embeddings(outputs[0], tuple(outputs[1:]))

    def close(self) -> None:
        self._requests.clear()

    def _request(self, graph: GraphRecord) -> Any:
        if graph.path not in self._requests:
            path = self._bundle.graph_path(graph)
            try:
                compiled = self._core.compile_model(self._core.read_model(path), "CPU", self._settings)
            except RuntimeError as error:
                raise InputError(
                    f"OpenVINO cannot load {path}: {str(error).splitlines()[0]}", field=path.name
                ) from None
            self._requests[graph.path] = compiled.create_infer_request()
        return self._requests[graph.path]


def load(name: str, bundle: Bundle, options: EngineOptions) -> Engine:
    """Load the OpenVINO engine.

    Args:
        name: a key of HINTS.

    Raises:
        InputError: bfloat16 asked of a CPU that has none, or the CPU plug-in does not load.
        BundleError: the bundle has no such precision.
    """
    engine = OpenvinoEngine(name, bundle, options)
    able = engine._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if name == "openvino-bf16" and "BF16" not in able:
        raise InputError(
            "this CPU has no bfloat16", field="--backend", got=name, remedy="Take --backend openvino, in float32."
        )
    return engine
