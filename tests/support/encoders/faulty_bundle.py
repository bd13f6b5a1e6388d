"""Copies of a bundle with one planted fault, and a manifest that vouches for it: only parity can notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qwen3vl_edge.contract.bundle.manifest import MANIFEST_NAME
from qwen3vl_edge.contract.bundle.open import open_bundle, record_file

BUCKET = "1x8x8"  # of conftest's small bundle


def with_weight_changed(
    bundle: Path, out: Path, tensor: str, index: tuple[int, ...], change: float, precision: str = "fp32"
) -> Path:
    """A copy whose `tensor`, float32 in that set, has one element changed by `change`."""

    def edit(weights: Any) -> None:
        weights[index] += change

    return with_weight_edited(bundle, out, tensor, edit, precision)


def with_weight_edited(
    bundle: Path, out: Path, tensor: str, edit: Callable[[Any], None], precision: str = "fp32"
) -> Path:
    """A copy whose `tensor`, float32 in that set, was edited in place."""
    shutil.copytree(bundle, out)
    folder = (out / open_bundle(bundle, verify=False).manifest.precision(precision).weights).parent
    graph = onnx.load(str(folder / f"{BUCKET}.onnx"), load_external_data=False).graph
    stored = next(item for item in graph.initializer if item.name == tensor)
    place = {entry.key: entry.value for entry in stored.external_data}
    weights = np.memmap(
        folder / place["location"], np.float32, "r+", offset=int(place["offset"]), shape=tuple(stored.dims)
    )
    edit(weights)
    weights.flush()
    _record_again(out)
    return out


def with_node_changed(bundle: Path, out: Path, graph: str, node: str, change: Callable[[Any], None]) -> Path:
    """A copy whose graph (`fp32/1x8x8.onnx`) has one node changed."""
    return with_graph_changed(
        bundle, out, graph, lambda model: change(next(item for item in model.node if item.name == node))
    )


def with_graph_changed(bundle: Path, out: Path, graph: str, change: Callable[[Any], None]) -> Path:
    """A copy with one graph changed; its other graphs, of the same weights, are as they were."""
    shutil.copytree(bundle, out)
    model = onnx.load(str(out / graph), load_external_data=False)
    change(model.graph)
    (out / graph).write_bytes(model.SerializeToString())
    _record_again(out)
    return out


def with_processor_edited(bundle: Path, out: Path, name: str, **values: Any) -> Path:
    """A copy whose `processor/{name}` has other values in it."""
    shutil.copytree(bundle, out)
    file = out / "processor" / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    _record_again(out)
    return out


def swap_levels(graph: Any) -> None:
    """The first two DeepStack outputs exchanged, after all layers were right."""
    nodes = {node.name: node for node in graph.node}
    one, other = nodes["deepstack.0"], nodes["deepstack.1"]
    one.input[0], other.input[0] = other.input[0], one.input[0]


def permute_positions(graph: Any) -> None:
    """The four corners of each learned position in reverse order, against weights in the right one."""
    place = next(index for index, node in enumerate(graph.node) if node.name == "pos_embed.rows")
    rows = graph.node[place]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([3, 2, 1, 0], np.int64), "fault.order"))
    graph.node.insert(place, onnx.helper.make_node("Gather", [rows.input[1], "fault.order"], ["fault.indices"], axis=1))
    graph.node[place + 1].input[1] = "fault.indices"


def damage_attention(graph: Any) -> None:
    """The softmax of one block over the wrong axis."""
    next(node for node in graph.node if node.name == "blocks.2.attn.softmax").attribute[0].i = -2


def _record_again(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["files"] = [vars(record_file(bundle, bundle / file["path"])) for file in manifest["files"]]
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
