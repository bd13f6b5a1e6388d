"""An engine proves itself on this machine: it encodes the bundle's golden pictures before it serves a graph.

A library's fusion, a driver or a kernel for one kind of CPU may compute a sound graph wrongly, and nothing shows: the
embeddings have the right shape, and an answer follows from them. So the first use of each graph on a machine runs its
golden pictures and compares (contract/bundle/golden.py). What passed is kept on disk by all that it depends on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.distance import Distance, distance
from qwen3vl_edge.contract.bundle.golden import Golden, GoldenLimit, golden_input, golden_rows, read_golden
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, PrecisionSet
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.edge_runtime.backends.proof_store import ProofStore
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend, run_encoder


@dataclass(frozen=True)
class Gap:
    """An output of an engine beside the golden one, and how far it may be.

    A cosine alone does not see an output that is too large as a whole, or a row of a weight that is.
    """

    grid: Grid
    output: str
    distance: Distance
    limit: GoldenLimit

    @property
    def passes(self) -> bool:
        """False for NaN."""
        own, limit = self.distance, self.limit
        return own.cosine >= limit.min_cosine and own.relative_l2 <= limit.max_relative_l2


class SelfTest:
    """The self-test of one loaded engine, graph by graph; safe to call from several threads.

    Args:
        identity: all that the engine's results depend on beside the bundle's files: library, driver, device.
        store: where passed tests are kept.
        find_passing: given a test of an encoder, names a backend of this machine that passes it, None if none does.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: EncoderBackend,
        identity: Sequence[str],
        store: ProofStore,
        find_passing: Callable[[Callable[[EncoderBackend], bool]], str | None],
    ) -> None:
        self._bundle, self._encoder = bundle, encoder
        self._identity, self._store, self._find_passing = identity, store, find_passing
        self._graphs: PrecisionSet = bundle.manifest.set_for(encoder.precision)
        self._golden = Golden({}, {})
        if self._graphs.golden is not None:
            self._golden = read_golden(bundle.path / self._graphs.golden, bundle.manifest.vision.output_names)
        self._proven: set[str] = set()
        self._failed: dict[str, EngineError] = {}
        self._lock = threading.Lock()

    def covers(self, grid: Grid, *, pixels: bool = False) -> bool:
        """Whether the bundle has golden pairs for the graph that serves a grid."""
        graph = self._graph(grid, pixels)
        return graph is not None and bool(self._grids(graph))

    def prove(self, grid: Grid, *, pixels: bool = False) -> None:
        """Test the graph that serves a grid, unless it has passed here before.

        Raises:
            EngineError: it gives other embeddings than the golden ones; has both figures, and a backend that passes.
        """
        graph = self._graph(grid, pixels)
        if graph is None or graph.path in self._proven:
            return
        with self._lock:
            if graph.path in self._failed:
                raise self._failed[graph.path]
            if graph.path not in self._proven:
                self._prove(graph)

    def _prove(self, graph: GraphRecord) -> None:
        key = self._key(graph)
        if not self._store.holds(key):
            worst = min(
                self._gaps(self._encoder, graph), key=lambda gap: (gap.passes, gap.distance.cosine), default=None
            )
            if worst is not None and not worst.passes:
                self._failed[graph.path] = self._refusal(graph, worst)
                raise self._failed[graph.path]
            self._store.add(key)
        self._proven.add(graph.path)

    def _graph(self, grid: Grid, pixels: bool) -> GraphRecord | None:
        """The record of the graph, or of that which the engine was built from."""
        kind = "image_uint8" if pixels else "fixed" if grid in self._encoder.serves.buckets else "dynamic"
        bucket = None if kind == "dynamic" else str(grid)
        return next((graph for graph in self._graphs.graphs if (graph.kind, graph.bucket) == (kind, bucket)), None)

    def _grids(self, graph: GraphRecord) -> list[Grid]:
        buckets = self._encoder.serves.buckets
        if graph.grid is None:
            return [grid for grid in self._golden.grids if grid not in buckets]
        return [grid for grid in self._golden.grids if grid == graph.grid]

    def _gaps(self, encoder: EncoderBackend, graph: GraphRecord) -> list[Gap]:
        manifest, gaps = self._bundle.manifest, []
        limits = self._golden.limits(encoder.precision, graph, encoder.name)
        for grid in self._grids(graph):
            drawn = golden_input(grid, manifest.vision, manifest.preprocessing)
            if graph.kind == "image_uint8":
                found = run_encoder(encoder, drawn)
            else:
                found = encoder.run(grid, drawn.pixel_values)
            outputs = zip(manifest.vision.output_names, (found.embeds, *found.deepstack), limits, strict=True)
            for (name, output, limit), want in zip(outputs, self._golden.rows[str(grid)], strict=True):
                gaps.append(Gap(grid, name, distance(golden_rows(output), want), limit))
        return gaps

    def _refusal(self, graph: GraphRecord, worst: Gap) -> EngineError:
        passing = self._find_passing(lambda other: all(gap.passes for gap in self._gaps(other, graph)))
        remedy = f"Take --backend {passing}, which passes here, and report this with the versions of both."
        if passing is None:
            remedy = "No other backend that is installed here passes either: copy the bundle again, or export it again."
        return EngineError(
            f"backend {self._encoder.name} computes graph {graph.path} wrongly on this machine: its self-test gives "
            f"other embeddings than the golden ones (output {worst.output}, grid {worst.grid})",
            field="--backend",
            expected=f"cosine >= {worst.limit.min_cosine:.7g}, relative L2 <= {worst.limit.max_relative_l2:.2g}",
            got=f"cosine {worst.distance.cosine:.7g}, relative L2 {worst.distance.relative_l2:.2g}",
            remedy=remedy,
        )

    def _key(self, graph: GraphRecord) -> list[str]:
        manifest, graphs = self._bundle.manifest, self._graphs
        files = [graph.path, graphs.weights, *([graphs.golden] if graphs.golden else [])]
        files += [
            plan
            for engine in manifest.engines
            if engine.library == self._encoder.name and engine.precision == self._encoder.precision
            for plan in engine.files
        ]
        limits = self._golden.limits(self._encoder.precision, graph, self._encoder.name)
        serves = "every grid" if graph.grid is not None else ", ".join(map(str, self._grids(graph)))
        return [
            self._encoder.name,
            self._encoder.precision,
            serves,
            f"within {limits}",  # what passed under another rule is tested again
            *self._identity,
            *(manifest.file(path).sha256 for path in files),
        ]
