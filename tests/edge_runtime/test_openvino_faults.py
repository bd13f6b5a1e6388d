"""Two faults of OpenVINO 2026.4 (docs/reports/openvino-faults.md): right values from today's graphs and older ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.position_tables import position_inputs
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.edge_runtime.backends import openvino
from qwen3vl_edge.edge_runtime.backends.openvino import breaks_when_fused, cpu_settings, openvino_core
from qwen3vl_edge.edge_runtime.backends.proof_store import ProofStore
from qwen3vl_edge.edge_runtime.backends.proven import proven
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import RandomCheckpoint, encoder_checkpoint
from tests.support.encoders.export_models import graph_of, relative_l2, run_encoder
from tests.support.encoders.older_attention import write_older_attention

# As many patches in a frame as heads: a picture, the same on its side, and a clip of two temporal patches.
AS_MANY = (Grid(1, 2, 4), Grid(1, 4, 2), Grid(2, 2, 4))
OTHERS = (Grid(1, 2, 2), Grid(1, 4, 4))
BUCKETS: dict[str, Any] = {"image_buckets": "32x64,64x32,32x32,64x64", "video_buckets": "4x32x64"}
# Wide enough that OpenVINO fuses its attention and does not crash on its MLP.
TOWER = {"hidden_size": 320, "intermediate_size": 320, "num_heads": 8, "depth": 2, "deepstack_visual_indexes": [0]}
LIMITS = {"fp32": 1e-4, "fp16": 1.4e-2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> RandomCheckpoint:
    return encoder_checkpoint(tmp_path_factory.mktemp("checkpoint"), **TOWER)


@pytest.fixture(scope="module")
def small(checkpoint: RandomCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "small"
    export_bundle(str(checkpoint.path), folder, precisions=("fp32", "fp16"), **BUCKETS)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def older(checkpoint: RandomCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "older"
    with pytest.MonkeyPatch.context() as patched:
        write_older_attention(patched)
        export_bundle(str(checkpoint.path), folder, dynamic=False, image_uint8=False, **BUCKETS)
    return open_bundle(folder)


def pixels_of(bundle: Bundle, grid: Grid) -> NDArray[np.float32]:
    size = (grid.patches, bundle.manifest.vision.patch_values)
    return np.random.default_rng(grid.patches).uniform(-1, 1, size).astype(np.float32)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("grid", AS_MANY + OTHERS, ids=str)
@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_openvino_alone_computes_the_graphs_of_an_export(
    small: Bundle, checkpoint: RandomCheckpoint, precision: str, grid: Grid, kind: str
) -> None:
    """The graph as it is written, with every fusion on: the backend's own precautions are not in this test."""
    graph = graph_of(small, kind, grid if kind == "fixed" else None, precision)
    pixels = pixels_of(small, grid)
    tables = position_inputs(small.manifest.vision, grid) if kind == "dynamic" else {}
    compiled = openvino_core().compile_model(small.graph_path(graph), "CPU", cpu_settings("f32", 1))
    found = compiled({"pixel_values": pixels, **tables})
    names = small.manifest.vision.output_names
    for name, want in zip(names, run_encoder(checkpoint.encoder, grid, pixels), strict=True):
        assert relative_l2(found[name], want) < LIMITS[precision], name


@pytest.mark.parametrize("grid", AS_MANY + OTHERS, ids=str)
def test_graphs_of_older_exports_are_right_too(checkpoint: RandomCheckpoint, older: Bundle, grid: Grid) -> None:
    assert breaks_when_fused(older.manifest.vision, graph_of(older, "fixed", grid, "fp32")) == (grid in AS_MANY)
    pixels = pixels_of(older, grid)
    backend = load_backend("openvino", older, BackendOptions(threads=1))
    found = backend.run(grid, pixels)
    for output, want in zip(
        (found.embeds, *found.deepstack), run_encoder(checkpoint.encoder, grid, pixels), strict=True
    ):
        assert relative_l2(output, want) < LIMITS["fp32"]


def test_without_precautions_the_self_test_refuses_it(
    checkpoint: RandomCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault itself, as the next one of its kind will be met: found at first use, and a sound backend named."""
    write_older_attention(monkeypatch)
    monkeypatch.setattr(openvino, "breaks_when_fused", lambda vision, graph: False)
    export_bundle(str(checkpoint.path), tmp_path / "older", image_buckets="32x64,64x64")
    older, options = open_bundle(tmp_path / "older"), BackendOptions(threads=1)
    backend = proven(load_backend("openvino", older, options), older, "openvino", options, ProofStore(None))
    grid = AS_MANY[0]
    with pytest.raises(EngineError, match=r"fp32/1x2x4\.onnx wrongly.*cosine >= 0\.99999.*--backend onnxruntime"):
        backend.run(grid, pixels_of(older, grid))
    for sound in (Grid(1, 4, 4), Grid(1, 2, 6)):  # another bucket, and the dynamic graph
        backend.run(sound, pixels_of(older, sound))


NARROW = """
import sys
import numpy as np
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
bundle = open_bundle(sys.argv[1])
backend = load_backend("openvino", bundle, BackendOptions(threads=1))
for grid in (Grid(1, 2, 2), Grid(1, 2, 4)):  # a bucket, and the dynamic graph
    found = backend.run(grid, np.zeros((grid.patches, bundle.manifest.vision.patch_values), np.float32))
    print(len(found.embeds))
"""


@pytest.mark.parametrize("width", [48, 256])
def test_narrow_towers_compile(tmp_path: Path, width: int) -> None:
    """With the fused MLP the process ends in a segmentation fault, so it is another process."""
    made = encoder_checkpoint(tmp_path / "checkpoint", hidden_size=width, intermediate_size=width, depth=2,
                              deepstack_visual_indexes=[0])  # fmt: skip
    export_bundle(str(made.path), tmp_path / "narrow", image_buckets="32x32")
    command = [sys.executable, "-c", NARROW, str(tmp_path / "narrow")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "2"]), done.stderr
