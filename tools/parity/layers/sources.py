"""Sources of a backend's intermediate outputs."""

from __future__ import annotations

import importlib.util

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.parity.layers.names import LayerSource


def layers_of(edge: Edge) -> LayerSource | None:
    """The layers that an edge's own backend computes; None where it has no outputs for them, as a TensorRT plan.

    Raises:
        InputError: a package that is needed for it is not installed.
    """
    if isinstance(edge.encoder, PytorchBackend):
        from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers

        return TorchLayers(edge.encoder, edge.bundle.manifest.vision)
    if not edge.encoder.name.startswith("onnxruntime"):
        return None
    options = edge.options.backend_options
    return layers_of_graph(edge.bundle, edge.encoder.precision, options.provider, options.threads)


def layers_of_graph(bundle: Bundle, precision: str, provider: str = "cpu", threads: int = 0) -> LayerSource:
    """The layers of a bundle's graphs on ONNX Runtime, of the set that stands for a precision.

    Raises:
        InputError: onnx is not installed, as on a device that only runs bundles.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("intermediate layers need onnx", field="--layers", remedy="Install it with: pip install onnx")
    from qwen3vl_edge.tools.parity.layers.graph_layers import GraphLayers

    return GraphLayers(bundle, bundle.manifest.set_for(precision).precision, provider, threads)


def no_layers(backend: str, option: str) -> InputError:
    """The error where layers are requested of a backend without outputs for them."""
    return InputError(
        f"{backend} shows no intermediate layers",
        field=option,
        expected="onnxruntime, pytorch, or a dump made with --layers",
        remedy="Take the graph that the engine was built from: --backend onnxruntime (--provider cuda on a GPU).",
    )
