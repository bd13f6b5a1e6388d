"""The encoder on ONNX Runtime: CPU by default, other execution providers by name."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads
from qwen3vl_edge.edge_runtime.backends.cuda_provider.load import USUAL, free_device_bytes, load_cuda_graph
from qwen3vl_edge.edge_runtime.backends.cuda_provider.one_thread import InGpuThread
from qwen3vl_edge.edge_runtime.backends.onnx_graphs import GraphSession, OnnxGraphBackend
from qwen3vl_edge.edge_runtime.backends.providers import find_provider, make_session
from qwen3vl_edge.edge_runtime.backends.selection import choose_graph, graph_inputs
from qwen3vl_edge.edge_runtime.encoder.protocol import AUTO_PROVIDER, BackendOptions, EncoderBackend

logger = logging.getLogger("edge")
CPUINFO = Path("/proc/cpuinfo")


class OnnxRuntimeBackend(OnnxGraphBackend):
    """One session per graph; sessions are safe to share.

    Attributes:
        edits: of the graphs' copies that are loaded in place of the files; embeddings depend on them.
        device_bytes: of the GPU's memory, by which the loaded graphs have made its free memory less.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        super().__init__(bundle, options)
        provider = "cpu" if options.provider == AUTO_PROVIDER else options.provider
        find_provider(provider)
        self._provider = provider
        self.name = "onnxruntime" if provider == "cpu" else f"onnxruntime-{provider}"
        self._threads = options.threads
        self.edits = tuple(USUAL) if provider == "cuda" else ()
        self._device = "cuda"  # of bound memory
        if provider == "cpu" and PRECISIONS[self.precision].quantized == "int8" and int8_products_saturate():
            logger.warning(
                "this CPU has no VNNI: int8 products may saturate and embeddings drift further than calibration says; "
                "use --backend openvino, another precision, or hold it with: qwen3vl-edge parity"
            )

    def check_provider(self) -> None:
        """Load one graph, so that a provider that does not start is an error here and not at the first picture."""
        self.loaded(self.graphs.graphs[0])

    def load_graph(self, graph: GraphRecord) -> Any:
        if self._provider != "cuda":  # captures nothing; TensorRT's may take minutes, in which others run
            return GraphSession(self._session(graph), graph)
        return self._loaded_in_thread(graph)

    @property
    def device_bytes(self) -> int:
        return sum(getattr(loaded, "device_bytes", 0) for loaded in list(self._loaded.values()))

    def _loaded_in_thread(self, graph: GraphRecord) -> Any:
        def load() -> Any:
            return load_cuda_graph(self.bundle, graph, self._session, self.edits, self._device)

        return InGpuThread(load, free_device_bytes)

    def _session(
        self, graph: GraphRecord, model: bytes | None = None, more_options: Mapping[str, str] | None = None
    ) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = cpu_threads(self._threads)
        settings.log_severity_level = 3
        disabled = ORT_DISABLED_OPTIMIZERS[PRECISIONS[self.precision].quantized]
        path = self.bundle.graph_path(graph)
        return make_session(path, settings, self._provider, self.bundle, disabled, model, more_options)

    def infer(self, loaded: Any, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = loaded.run(feeds)
        return outputs

    def device_seconds(self, grid: Grid, pixel_values: NDArray[np.float32]) -> float | None:
        """Seconds until the GPU is done, by the host's clock, without copies; None where nothing is bound to one."""
        graph = choose_graph(self.graphs, grid)
        feeds = graph_inputs(self.bundle.manifest.vision, graph, grid, pixel_values)
        seconds: float | None = self.loaded(graph).device_seconds(feeds)
        return seconds

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.close()
        super().close()


def load(bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load the ONNX Runtime backend.

    Raises:
        InputError: no such provider, or one that does not start here.
        BundleError: the bundle has no such precision.
    """
    backend = OnnxRuntimeBackend(bundle, options)
    if options.provider not in ("cpu", AUTO_PROVIDER):
        backend.check_provider()
    return backend


def int8_products_saturate(cpuinfo: Path = CPUINFO) -> bool:
    """Whether ONNX Runtime's int8 products may clip their sums to 16 bits here.

    x86-64 without VNNI multiplies with VPMADDUBSW, which saturates the sum of two products (ONNX Runtime's
    documentation, "Quantize ONNX models", on U8S8 and AVX2). With VNNI, and on Arm, sums are 32 bits wide.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), None)
    return flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags)
