"""The encoder on OpenVINO: the fastest on most x86-64 CPUs, AMD's too, where ONNX Runtime's own is always there.

`openvino` computes everything that is not quantized in float32. `openvino-bf16` uses bfloat16 where the CPU has it:
nearly twice as fast there, and as far from float32 as any bfloat16 encoder; every request has the name.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import openvino as ov
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import GraphRecord, VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads
from qwen3vl_edge.edge_runtime.backends.onnx_graphs import OnnxGraphBackend
from qwen3vl_edge.edge_runtime.backends.openvino_norms import quantize_in_norms
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend

HINTS = {"openvino": "f32", "openvino-bf16": "bf16"}
# OpenVINO's own property: small operations are not compiled into common kernels ("snippets").
SEPARATE_KERNELS = {"SNIPPETS_MODE": "DISABLE"}
WIDEST_FUSED_MLP = 256


@cache
def openvino_core() -> ov.Core:
    """The process's one OpenVINO, which is never freed.

    The CPU plug-in sets a signal stack for the thread that starts it and unmaps it with its `Core`. With two, freed
    in the order in which they were made, the thread is left with the first one's unmapped stack, and the next signal
    (Ctrl-C, SIGTERM) ends the process without a message: seen with 2026.4.1, in tests/edge_runtime/test_openvino.py.
    """
    return ov.Core()


def cpu_settings(hint: str, threads: int) -> dict[str, Any]:
    """How a model is compiled for one picture at a time.

    Args:
        hint: a value of HINTS.
        threads: 0 for OpenVINO's choice.

    Raises:
        InputError: bfloat16 on a CPU that has none, which would compute in float32.
    """
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if hint == HINTS["openvino-bf16"] and "BF16" not in capabilities:
        raise InputError(
            "this CPU has no bfloat16",
            field="--backend",
            got="openvino-bf16",
            remedy="Take --backend openvino, in float32.",
        )
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads := cpu_threads(threads):
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


def breaks_when_fused(vision: VisionSpec, graph: GraphRecord) -> bool:
    """Whether OpenVINO 2026.4 compiles the graph wrongly, or crashes, unless its operations stay separate.

    Both cases are reproduced in docs/reports/openvino-faults.md, and both are small: nothing is lost by it.

    - A frame of as many patches as heads: fused attention writes its output, heads and patches exchanged, over the
      queries that it still reads. Graphs of exports since then prevent it by themselves; older bundles have the others.
    - An MLP of at most 256 columns inside and outside, with its residual: the process ends in compile_model.
    """
    as_many_patches_as_heads = graph.grid is not None and graph.grid.patches_per_frame == vision.num_heads
    return as_many_patches_as_heads or max(vision.hidden_size, vision.intermediate_size) <= WIDEST_FUSED_MLP


class OpenvinoBackend(OnnxGraphBackend):
    """One compiled model per graph; each picture gets all threads."""

    def __init__(self, name: str, bundle: Bundle, options: BackendOptions) -> None:
        super().__init__(bundle, options)
        self.name = name
        self._bf16 = HINTS[name] == "bf16"
        self._settings = cpu_settings(HINTS[name], options.threads)
        self._running = threading.Lock()

    def load_graph(self, graph: GraphRecord) -> Any:
        path, core, settings = self.bundle.graph_path(graph), openvino_core(), self._settings
        if breaks_when_fused(self.bundle.manifest.vision, graph):
            settings = settings | SEPARATE_KERNELS
        try:
            model = core.read_model(path)
            if self._bf16:
                quantize_in_norms(model)
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot load {path}: {str(error).splitlines()[0]}", field=path.name) from None
        return compiled.create_infer_request()

    def infer(self, loaded: Any, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with self._running:  # a request holds its buffers; one at a time has all cores anyway
            loaded.infer(feeds)
            return [loaded.get_tensor(name).data.copy() for name in self.bundle.manifest.vision.output_names]


def load(name: str, bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load the OpenVINO backend.

    Args:
        name: a key of HINTS.

    Raises:
        InputError: bfloat16 on a CPU that has none, or the CPU plug-in does not load.
        BundleError: the bundle has no such precision.
    """
    return OpenvinoBackend(name, bundle, options)
