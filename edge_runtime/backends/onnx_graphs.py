"""The base of the backends that run the bundle's ONNX graphs: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import BucketError
from qwen3vl_edge.edge_runtime.backends.selection import choose_graph, graph_inputs, pixel_graph
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, ServedGrids, bundle_serves


class OnnxGraphBackend(ABC):
    """One loaded graph per bucket of one precision, loaded when its bucket is first used.

    Raises:
        BundleError: the bundle has no such precision.
    """

    name: str

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self.bundle = bundle
        self.graphs = bundle.manifest.precision(options.precision)
        self.precision = self.graphs.precision
        self._loaded: dict[str, Any] = {}
        self._loading = threading.Lock()

    @property
    def serves(self) -> ServedGrids:
        return bundle_serves(self.bundle, self.precision)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        graph = choose_graph(self.graphs, grid)
        feeds = graph_inputs(self.bundle.manifest.vision, graph, grid, pixel_values)
        outputs = self.infer(self.loaded(graph), feeds)
        return Embeddings(outputs[0], tuple(outputs[1:]))

    def takes_pixels(self, grid: Grid) -> bool:
        return pixel_graph(self.graphs, grid) is not None

    def run_pixels(self, grid: Grid, pixels: NDArray[np.uint8]) -> Embeddings:
        graph = pixel_graph(self.graphs, grid)
        if graph is None:
            raise BucketError(f"the bundle has no uint8 graph for grid {grid}", field="buckets")
        outputs = self.infer(self.loaded(graph), {"pixels": pixels})
        return Embeddings(outputs[0], tuple(outputs[1:]))

    def close(self) -> None:
        self._loaded.clear()

    def loaded(self, graph: GraphRecord) -> Any:
        """The graph as the library runs it; safe to call from several threads."""
        with self._loading:
            if graph.path not in self._loaded:
                self._loaded[graph.path] = self.load_graph(graph)
            return self._loaded[graph.path]

    @abstractmethod
    def load_graph(self, graph: GraphRecord) -> Any:
        """Load the graph into what `infer` runs."""

    @abstractmethod
    def infer(self, loaded: Any, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of `vision.output_names`, owned by the caller."""


class GraphSession:
    """An ONNX Runtime session of one graph, from host arrays to new ones; several threads may run it at once."""

    def __init__(self, session: Any, graph: GraphRecord) -> None:
        self._session = session
        self._names = [spec.name for spec in graph.outputs]

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs in the record's order, owned by the caller."""
        outputs: list[NDArray[Any]] = self._session.run(self._names, feeds)
        return outputs

    def device_seconds(self, feeds: dict[str, NDArray[Any]]) -> float | None:
        """None: its time is the host's."""
        return None

    def close(self) -> None:
        """The session is freed with the last reference to it."""
