"""Where an engine's intermediate outputs come from; each backend shows what it can."""

from __future__ import annotations

import importlib.util

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.parity.layers.names import LayerSource


def layers_of(edge: Edge) -> LayerSource | None:
    """The layers that an edge's own engine computes; None where it keeps them to itself, as a TensorRT plan does.

    Raises:
        InputError: a package that shows them is not installed.
    """
    if isinstance(edge.engine, PytorchBackend):
        from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers

        return TorchLayers(edge.engine, edge.bundle.manifest.vision)
    if not edge.engine.name.startswith("onnxruntime"):
        return None
    engine = edge.options.engine
    return layers_of_graph(edge.bundle, edge.engine.precision, engine.provider, engine.threads)


def layers_of_graph(bundle: Bundle, precision: str, provider: str = "cpu", threads: int = 0) -> LayerSource:
    """The layers of a bundle's graphs on ONNX Runtime.

    Raises:
        InputError: onnx is not installed, as on a device that only runs bundles.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("intermediate layers need onnx", field="--layers", remedy="Install it with: pip install onnx")
    from qwen3vl_edge.tools.parity.layers.graph_layers import GraphLayers

    return GraphLayers(bundle, precision, provider, threads)


def no_layers(backend: str, option: str) -> InputError:
    """The refusal where layers were asked of an engine that shows none."""
    return InputError(
        f"{backend} shows no intermediate layers",
        field=option,
        expected="onnxruntime, pytorch, or a dump made with --layers",
        remedy="Take the graph that the engine was built from: --backend onnxruntime (--provider cuda on a GPU).",
    )
