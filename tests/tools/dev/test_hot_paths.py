"""The hot paths cost no more than they did, counted and not timed: see tools/dev/bench/hot_paths.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.tools.dev.bench.hot_paths import COUNTS, above, count, graph_counts, hot_paths

KEPT = json.loads(COUNTS.read_text(encoding="utf-8"))["paths"]
# Of the reference encoder's fixed fp32 graph, whatever its bucket; a graph that grows runs more.
MOST_NODES, PRODUCTS_PER_BLOCK = 1.1, 6  # qkv, two of attention, its output, two of the MLP


@pytest.mark.parametrize("name", KEPT)
def test_a_hot_path_costs_no_more_than_it_did(name: str) -> None:
    work, size = hot_paths()[name]
    assert not above(name, count(work, size), KEPT[name])


def test_every_hot_path_is_kept() -> None:
    assert set(hot_paths()) == set(KEPT)


def test_a_copy_and_a_loop_over_values_are_noticed() -> None:
    array = np.zeros((196, 2048), np.float16)
    kept = count(array.view, array.nbytes)
    assert not above("view", count(array.view, array.nbytes), kept)
    assert "allocates" in above("view", count(array.copy, array.nbytes), kept)[0]
    assert "instructions" in above("view", count(lambda: [row.sum() for row in array.T], array.nbytes), kept)[0]


def test_the_graph_has_no_products_but_the_encoders_own(bundle: Path) -> None:
    opened = open_bundle(bundle)
    vision = opened.manifest.vision
    fixed = [graph for graph in opened.manifest.precision("fp32").graphs if graph.kind == "fixed" and graph.grid.t == 1]
    counts = [graph_counts(opened.graph_path(graph)) for graph in fixed]
    mergers = 1 + len(vision.deepstack_visual_indexes)
    assert {item["products"] for item in counts} == {1 + PRODUCTS_PER_BLOCK * vision.depth + 2 * mergers}
    nodes = [item["nodes"] for item in counts]
    assert max(nodes) <= MOST_NODES * min(nodes)
