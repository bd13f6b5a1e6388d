"""The encoder on ONNX Runtime: CPU by default, other execution providers by name."""

from __future__ import annotations

import logging
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads
from qwen3vl_edge.edge_runtime.backends.cpu_features import int8_products_saturate
from qwen3vl_edge.edge_runtime.backends.onnx_graphs import OnnxGraphBackend
from qwen3vl_edge.edge_runtime.backends.providers import find_provider, make_session
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend

logger = logging.getLogger("edge")


class OnnxRuntimeBackend(OnnxGraphBackend):
    """One session per graph; sessions are safe to share."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
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


def load(bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load the ONNX Runtime engine.

    Raises:
        InputError: no such provider, or one that does not start here.
        BundleError: the bundle has no such precision.
    """
    engine = OnnxRuntimeBackend(bundle, options)
    if options.provider != "cpu":
        engine.check_provider()
    return engine
