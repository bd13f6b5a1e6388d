"""The encoder on ONNX Runtime: CPU by default, other execution providers by name."""

from __future__ import annotations

import logging
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.cpu_threads import cpu_threads
from contract.manifest import GraphRecord
from contract.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from edge_runtime.backends.providers import find_provider, make_session
from edge_runtime.cpu_features import int8_products_saturate
from edge_runtime.engine import Engine, EngineOptions
from edge_runtime.graph_engine import GraphEngine

logger = logging.getLogger("edge")


class OnnxRuntimeEngine(GraphEngine):
    """One session per graph; sessions are safe to share."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        super().__init__(bundle, options)
        find_provider(options.provider)
        self._provider = options.provider
        self.name = "onnxruntime" if options.provider == "cpu" else f"onnxruntime-{options.provider}"
        self._threads = options.threads
        if options.provider == "cpu" and PRECISIONS[self.precision].quantized == "int8" and int8_products_saturate():
            logger.warning(
                "this CPU has no VNNI: int8 products may saturate and embeddings drift further than calibration says; "
                "use --backend openvino, another precision, or hold it with: qwen3vl-edge parity"
            )

    def check_provider(self) -> None:
        """Load one graph, so that a provider that does not start is known now and not at the first picture."""
        self.loaded(self.graphs.graphs[0])

    def load_graph(self, graph: GraphRecord) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = cpu_threads(self._threads)
        settings.log_severity_level = 3
        disabled = ORT_DISABLED_OPTIMIZERS[PRECISIONS[self.precision].quantized]
        return make_session(self.bundle.graph_path(graph), settings, self._provider, self.bundle, disabled)

    def infer(self, loaded: Any, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = loaded.run(list(self.bundle.manifest.vision.output_names), feeds)
        return outputs


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
