"""Which graph of a bundle serves a grid, and what it is fed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, PrecisionSet, VisionSpec
from qwen3vl_edge.contract.errors import BucketError
from qwen3vl_edge.edge_runtime.backends.position_inputs import position_inputs


def choose_graph(graphs: PrecisionSet, grid: Grid) -> GraphRecord:
    """The fixed graph of that grid, or the dynamic-shape graph.

    Raises:
        BucketError: neither is there.
    """
    fixed = {graph.bucket: graph for graph in graphs.graphs if graph.kind == "fixed"}
    dynamic = next((graph for graph in graphs.graphs if graph.kind == "dynamic"), None)
    graph = fixed.get(str(grid)) or dynamic
    if graph is None:
        raise BucketError(
            f"the bundle has no graph for grid {grid}",
            field="buckets",
            expected=", ".join(str(name) for name in fixed),
            remedy="Export it with that bucket or with the dynamic-shape graph.",
        )
    return graph


def pixel_graph(graphs: PrecisionSet, grid: Grid) -> GraphRecord | None:
    """The graph that takes uint8 pixels of that grid, None where the bundle has none."""
    return next((graph for graph in graphs.graphs if graph.kind == "image_uint8" and graph.grid == grid), None)


def graph_inputs(
    vision: VisionSpec, graph: GraphRecord, grid: Grid, pixel_values: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name: the patches, and the tables of the grid where they are not baked in."""
    feeds: dict[str, NDArray[Any]] = {"pixel_values": pixel_values}
    return feeds | position_inputs(vision, grid) if graph.kind == "dynamic" else feeds
