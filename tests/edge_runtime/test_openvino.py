"""OpenVINO reads the same graphs: in float32 as exact as ONNX Runtime, in bfloat16 as exact as that is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.distance import Distance, distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.edge_runtime.backends.availability import list_availability
from qwen3vl_edge.edge_runtime.backends.onnxruntime import int8_products_saturate
from qwen3vl_edge.edge_runtime.backends.openvino import OpenvinoBackend, cpu_settings, load, openvino_core
from qwen3vl_edge.edge_runtime.backends.openvino_norms import quantize_in_norms
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings

GRIDS = (Grid(1, 8, 8), Grid(1, 8, 10), Grid(4, 6, 6), Grid(1, 6, 14), Grid(2, 4, 6))  # the last two: dynamic


def bf16_here(bundle: Path) -> bool:
    return any(item.backend == "openvino-bf16" and item.runs for item in list_availability(open_bundle(bundle)))


def encode(bundle: Path, backend: str, precision: str, grid: Grid) -> Embeddings:
    opened = open_bundle(bundle, verify=False)
    width = opened.manifest.vision.patch_values
    pixels = np.random.default_rng(grid.patches).uniform(-1, 1, (grid.patches, width)).astype(np.float32)
    loaded = load_backend(backend, opened, BackendOptions(precision=precision))
    try:
        return loaded.run(grid, pixels)
    finally:
        loaded.close()


def worst(one: Embeddings, other: Embeddings) -> Distance:
    pairs = zip((one.embeds, *one.deepstack), (other.embeds, *other.deepstack), strict=True)
    found = [distance(a, b) for a, b in pairs]
    return Distance(
        min(item.cosine for item in found),
        max(item.max_abs for item in found),
        max(item.relative_l2 for item in found),
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_float32_graphs_give_the_same(calibrated: Path, grid: Grid) -> None:
    one, other = (encode(calibrated, backend, "fp32", grid) for backend in ("openvino", "onnxruntime"))
    assert worst(one, other).relative_l2 < 1e-4


@pytest.mark.skipif(
    int8_products_saturate(),
    reason="needs a CPU with VNNI, or Arm: without it ONNX Runtime's int8 products saturate, and are no reference",
)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_int8_graphs_give_the_same(calibrated: Path, grid: Grid) -> None:
    """The same integers; where a value lies between two of them, the last bit before it decides."""
    one, other = (encode(calibrated, backend, "int8", grid) for backend in ("openvino", "onnxruntime"))
    assert worst(one, other).cosine > 0.9995


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_int8_graphs_are_near_float32(calibrated: Path, grid: Grid) -> None:
    one, exact = encode(calibrated, "openvino", "int8", grid), encode(calibrated, "onnxruntime", "fp32", grid)
    assert worst(one, exact).cosine > 0.99


def test_bfloat16_is_asked_for_by_name(calibrated: Path) -> None:
    if not bf16_here(calibrated):
        with pytest.raises(InputError, match="no bfloat16"):
            load("openvino-bf16", open_bundle(calibrated), BackendOptions())
        pytest.skip("needs a CPU with bfloat16")
    exact = encode(calibrated, "onnxruntime", "fp32", GRIDS[1])
    bf16 = worst(encode(calibrated, "openvino-bf16", "fp32", GRIDS[1]), exact)
    assert 0.99 < bf16.cosine < 0.9999995  # it is bfloat16
    assert load("openvino-bf16", open_bundle(calibrated), BackendOptions()).name == "openvino-bf16"


def test_norms_that_quantize_leave_the_function_as_it_is(calibrated: Path) -> None:
    opened = open_bundle(calibrated, verify=False)
    vision, graphs = opened.manifest.vision, opened.manifest.precision("int8").graphs
    fixed = next(graph for graph in graphs if graph.kind == "fixed")
    core, settings = openvino_core(), cpu_settings("f32", 1)
    plain, changed = (core.read_model(opened.graph_path(fixed)) for _ in range(2))
    # Two norms in each block, one in each merger; the mergers of DeepStack norm what they have merged.
    assert quantize_in_norms(changed) >= 2 * vision.depth + 1
    dynamic = next(graph for graph in graphs if graph.kind == "dynamic")
    assert quantize_in_norms(core.read_model(opened.graph_path(dynamic))) == 0
    grid = fixed.grid
    assert grid is not None
    pixels = np.random.default_rng(0).uniform(-1, 1, (grid.patches, vision.patch_values)).astype(np.float32)
    outputs = []
    for model in (plain, changed):
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        request.infer({"pixel_values": pixels})
        outputs.append([request.get_tensor(name).data.copy() for name in vision.output_names])
    for one, other in zip(*outputs, strict=True):
        assert distance(other, one).cosine > 0.9999


def test_int8_in_bfloat16_is_near(calibrated: Path) -> None:
    if not bf16_here(calibrated):
        pytest.skip("needs a CPU with bfloat16")
    exact = encode(calibrated, "onnxruntime", "fp32", GRIDS[1])
    assert worst(encode(calibrated, "openvino-bf16", "int8", GRIDS[1]), exact).cosine > 0.99


def test_refusals(calibrated: Path) -> None:
    opened = open_bundle(calibrated)
    with pytest.raises(BundleError, match="no such precision"):
        load("openvino", opened, BackendOptions(precision="fp64"))
    with pytest.raises(InputError, match="no such backend"):
        load_backend("open-vino", opened, BackendOptions())


def test_a_closed_backend_compiles_again(calibrated: Path) -> None:
    opened = open_bundle(calibrated)
    loaded = OpenvinoBackend("openvino", opened, BackendOptions(threads=1))
    pixels = np.zeros((64, opened.manifest.vision.patch_values), np.float32)
    first = loaded.run(Grid(1, 8, 8), pixels)
    loaded.close()
    np.testing.assert_array_equal(first.embeds, loaded.run(Grid(1, 8, 8), pixels).embeds)


SIGNALLED = """
import os, signal, sys
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
bundle = open_bundle(sys.argv[1], verify=False)
first = load_backend("openvino", bundle, BackendOptions())
second = load_backend("openvino", bundle, BackendOptions())
for loaded in (first, second):
    loaded.close()
del loaded, first, second
os.kill(os.getpid(), signal.SIGTERM)
print(*heard)
"""


def test_a_signal_after_backends_were_freed_in_turn(calibrated: Path) -> None:
    """A Core of its own per backend, and this process would die of SIGSEGV (see openvino_core)."""
    command = [sys.executable, "-c", SIGNALLED, str(calibrated)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "SIGTERM"), done.stderr
