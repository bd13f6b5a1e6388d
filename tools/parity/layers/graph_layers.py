"""Intermediate tensors of a bundle's ONNX graph: a copy in memory with more outputs; the bundle is not touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads
from qwen3vl_edge.edge_runtime.backends.providers import make_session
from qwen3vl_edge.edge_runtime.backends.selection import choose_graph, graph_inputs, pixel_graph
from qwen3vl_edge.edge_runtime.encoder.protocol import bundle_serves
from qwen3vl_edge.tools.parity.layers.names import SMOOTHED_PARTS, part_of
from qwen3vl_edge.tools.parity.samples import UINT8, Case

# What a graph of uint8 pixels computes under another name: the product of both frames' weights, summed beforehand.
_OF_PIXELS = {"patch_embed.proj": "patch_embed.image"}


class GraphLayers:
    """The graphs of one precision on ONNX Runtime, with intermediate tensors as outputs.

    An intermediate output keeps ONNX Runtime from fusing across it, so figures may differ from a plain run in
    the last bits.
    """

    def __init__(self, bundle: Bundle, precision: str | None, provider: str = "cpu", threads: int = 0) -> None:
        self._bundle, self._provider, self._threads = bundle, provider, threads
        self._set = bundle.manifest.precision(precision)
        self.label = f"ONNX Runtime {provider}, {self._set.precision}"
        self._names: dict[str, frozenset[str]] = {}
        self._loaded: tuple[tuple[str, tuple[str, ...]], Any] | None = None

    def offers(self, layer: str) -> bool:
        """Whether every graph of the set computes it, and computes the same values as PyTorch does."""
        calibration = self._set.calibration
        if calibration is not None and calibration.smooth is not None and part_of(layer) in SMOOTHED_PARTS:
            return False
        return all(_own_name(layer, graph) in self._tensors(graph) for graph in self._set.graphs)

    def serves(self, case: Case) -> bool:
        served = bundle_serves(self._bundle, self._set.precision)
        return served.dynamic or case.grid in served.buckets

    def run(self, case: Case, layers: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Of the uint8 graph for a case of one, where the set has it. Raises BucketError where no graph serves it."""
        pixels = pixel_graph(self._set, case.grid) if case.graph == UINT8 else None
        if pixels is None or case.input.pixels is None:
            graph = choose_graph(self._set, case.grid)
            feeds = graph_inputs(self._bundle.manifest.vision, graph, case.grid, case.input.pixel_values)
        else:
            graph, feeds = pixels, {"pixels": case.input.pixels}
        names = [_own_name(layer, graph) for layer in layers]
        activations = self._session(graph, tuple(names)).run(names, feeds)
        return dict(zip(layers, activations, strict=True))

    def _tensors(self, graph: GraphRecord) -> frozenset[str]:
        if graph.path not in self._names:
            nodes = onnx.load(str(self._bundle.graph_path(graph)), load_external_data=False).graph.node
            self._names[graph.path] = frozenset(output for node in nodes for output in node.output)
        return self._names[graph.path]

    def _session(self, graph: GraphRecord, layers: tuple[str, ...]) -> Any:
        """Only the last session is kept: each holds the weights once more."""
        key = (graph.path, layers)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            settings = ort.SessionOptions()
            settings.intra_op_num_threads = cpu_threads(self._threads)
            settings.log_severity_level = 3
            path = self._bundle.graph_path(graph)
            model = with_outputs(onnx.load(str(path), load_external_data=False), layers)
            disabled = ORT_DISABLED_OPTIMIZERS[PRECISIONS[self._set.precision].quantized]
            session = make_session(path, settings, self._provider, self._bundle, disabled, model)
            self._loaded = (key, session)
        return self._loaded[1]


def _own_name(layer: str, graph: GraphRecord) -> str:
    return _OF_PIXELS.get(layer, layer) if graph.kind == UINT8 else layer


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The graph, serialized, with these tensors as outputs besides its own; their types are inferred at load."""
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return bytes(model.SerializeToString())
