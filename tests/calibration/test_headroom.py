"""Quantized sets of a tower that float16 cannot hold: right in true float16 too, where one layer stays float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle
from qwen3vl_edge.calibration.headroom import quantized_headroom
from qwen3vl_edge.calibration.quantized_weights import source_weights
from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.onnx.headroom import LayerRanges, layers
from qwen3vl_edge.export.onnx.quantization import Quantization
from tests.support.encoders.export_models import graph_of, picture, run_graph
from tests.support.encoders.true_float16 import run_true_float16

GRID = Grid(1, 8, 8)
WIDE = "blocks.1.mlp.linear_fc2"


@pytest.fixture(scope="module")
def planted(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint with three outputs of an MLP times 1e5, and pictures to calibrate on."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(reference, folder / "model")
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    prefix = next(name.split("blocks.")[0] for name in tensors if ".visual.blocks." in name)
    for part in ("weight", "bias"):
        array = tensors[f"{prefix}{WIDE}.{part}"].astype(np.float32)
        array[3:6] *= 1e5
        tensors[f"{prefix}{WIDE}.{part}"] = array
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "data").mkdir()
    for seed in range(8):
        Image.fromarray(picture(128, 128, seed)).save(folder / "data" / f"{seed}.png")
    return folder


@pytest.mark.parametrize(
    ("base", "precision", "rest"),
    [("fp32", "int8", "fp16"), ("fp32", "fp8", "fp16"), ("fp32", "fp8", "fp32"), ("fp16", "int8", "fp16")],
)
def test_quantized_sets_hold_in_true_float16(
    planted: Path, tmp_path: Path, base: str, precision: str, rest: str
) -> None:
    export_bundle(str(planted / "model"), tmp_path / "b", image_buckets="128x128", precisions=(base,), dynamic=False)
    request = CalibrationRequest(precision, planted / "data", samples=4, rest=rest, auto_exclude=0.0)
    result = calibrate_bundle(tmp_path / "b", request)
    wide = {item.layer for item in result.graphs.headroom if item.precision == "fp32"}
    assert wide == ({WIDE} if rest == "fp16" else set())
    assert WIDE in result.record.quantized
    bundle, pixels = open_bundle(tmp_path / "b"), {"pixels": picture(128, 128, 77)}
    expected = run_graph(bundle, graph_of(bundle, "image_uint8", GRID, base), pixels)
    graph = graph_of(bundle, "image_uint8", GRID, result.graphs.precision)
    rounded = run_true_float16(bundle.graph_path(graph), pixels)
    for output, reference, wider in zip(rounded, expected, run_graph(bundle, graph, pixels), strict=True):
        assert np.isfinite(output).all()
        # What the manifest's figures are measured with is what a GPU computes.
        assert distance(output, reference).cosine == pytest.approx(distance(wider, reference).cosine, abs=1e-3)
        assert distance(output, reference).cosine > 0.997


def test_smoothing_and_small_steps_are_judged_too(bundle: Path) -> None:
    """Factors below 1 widen values, and a step below 6e-5 is no float16 of 11 bits."""
    opened = open_bundle(bundle)
    spec, base = opened.manifest.vision, opened.manifest.precision("fp32")
    width = spec.hidden_size
    ranges = LayerRanges()
    for layer in layers(spec):
        outputs = np.full(3 * width if layer.endswith("qkv") else 1, 100, np.float32)
        ranges.see(layer, np.full(2 * width if layer.endswith("scores") else width, 100, np.float32), outputs)
    smoothing = [
        Smoothing("blocks.0.mlp.linear_fc1", "blocks.0.norm2", np.full(width, 1e-3, np.float32)),
        Smoothing("blocks.1.attn.proj", "blocks.1.attn.qkv", np.full(width, 1e-3, np.float32)),
        Smoothing("blocks.2.attn.proj", "blocks.2.attn.qkv", np.full(width, 1e3, np.float32)),
    ]
    quantization = Quantization("int8", {"blocks.3.attn.qkv": 1e-5, "blocks.3.attn.proj": 1e-2})
    found = quantized_headroom(spec, ranges, source_weights(opened, base), quantization, smoothing)
    assert [item.layer for item in found if item.precision == "fp32"] == [
        "blocks.0.mlp.linear_fc1",
        "blocks.1.attn.qkv",
        "blocks.1.attn.scores",
        "blocks.1.attn.proj",
        "blocks.3.attn.qkv",
    ]
