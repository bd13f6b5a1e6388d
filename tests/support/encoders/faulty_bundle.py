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
    shutil.copytree(bundle, out)
    model = onnx.load(str(out / graph), load_external_data=False)
    change(next(item for item in model.graph.node if item.name == node))
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


def _record_again(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["files"] = [vars(record_file(bundle, bundle / file["path"])) for file in manifest["files"]]
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
