"""On a GPU: engines built for it and ONNX Runtime's CUDA provider give PyTorch's embeddings, and answers as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import installed, rtx_takes
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, EncoderBackend, PixelBackend
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.tensorrt.build_engines import build_engines
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
from qwen3vl_edge.tools.dev.random_checkpoint import TINY_VISION, encoder_checkpoint
from qwen3vl_edge.tools.dev.train_reference.heldout import mixed_prompts
from qwen3vl_edge.tools.parity.end_to_end import compare_prompts, open_both
from qwen3vl_edge.tools.parity.pictures import pictures_of
from tests.support.encoders.compared import compare_encoders
from tests.support.encoders.taking_turns import check_threads, outputs_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="needs an NVIDIA GPU with its driver and cuda-bindings"),
]
MIN_COSINE = {"fp16": 0.9997, "fp32": 0.99999}
GPU = find_gpu()


def why_not(library: str) -> str | None:
    """Why a library has nothing to test here."""
    if not installed(library):
        return f"needs {library} on a GPU machine"
    if library == "tensorrt_rtx" and GPU is not None and not rtx_takes(GPU.compute_capability):
        return f"TensorRT-RTX does not take this GPU: {GPU}"
    return None


LIBRARIES = [
    pytest.param(name, marks=pytest.mark.skipif(why_not(name) is not None, reason=str(why_not(name))))
    for name in ("tensorrt", "tensorrt_rtx")
]
on_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu"
)
CASES = [(precision, layout) for precision in ("fp16", "fp32") for layout in ("profiles", "per-bucket")]


def build(bundle: Path, copy: Path, library: str, precision: str, layout: str) -> Path:
    """A bundle with an engine for the GPU here."""
    shutil.copytree(bundle, copy)
    target = "this-gpu" if library == "tensorrt" else "rtx-portable"
    record = build_engines(copy, BuildRequest(target, precision=precision, layout=layout)).record
    if record.library != library:
        pytest.skip(f"this-gpu builds with {record.library} here")
    return copy


@pytest.fixture
def engine_edge(bundle: Path, tmp_path: Path, library: str, precision: str, layout: str) -> Iterator[Edge]:
    path = build(bundle, tmp_path / "bundle", library, precision, layout)
    options = EdgeOptions(backend=library, backend_options=BackendOptions(precision=precision), wire_dtype="fp32")
    with open_edge(path, options) as edge:
        yield edge


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("precision", "layout"), CASES)
def test_embeddings_are_pytorch_s_in_every_bucket(
    engine_edge: Edge, bundle: Path, reference: Path, precision: str
) -> None:
    oracle = load_backend("pytorch", open_bundle(bundle), BackendOptions(model=reference))
    rows = compare_encoders(engine_edge, oracle, pictures_of(None))
    assert {row.bucket for row in rows} >= {str(grid) for grid in engine_edge.bundle.manifest.buckets()}
    for row in rows:
        assert row.distance.cosine >= MIN_COSINE[precision], row


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("precision", "layout"), [("fp16", "profiles")])
def test_answers_are_the_unsplit_model_s(engine_edge: Edge, reference: Path) -> None:
    prompts = [(item.id, item.messages) for item in mixed_prompts(60)]
    results = compare_prompts(prompts, *open_both(engine_edge, reference), 12)
    assert sum(item.agrees for item in results) >= 0.99 * len(results)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("precision", "layout"), [("fp16", "profiles")])
def test_threads_take_turns(engine_edge: Edge) -> None:
    turns(engine_edge.encoder, engine_edge.bundle.manifest.buckets() * 4)


def turns(encoder: EncoderBackend, grids: Sequence[Grid]) -> None:
    check_threads(outputs_of(encoder), [(grid, draw(grid, seed)) for seed, grid in enumerate(grids)])


@pytest.mark.parametrize("library", LIBRARIES)
def test_stripped_plans_are_refitted(bundle: Path, reference: Path, tmp_path: Path, library: str) -> None:
    path = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    request = BuildRequest("this-gpu", precision="fp16", strip_weights=True)
    record = build_engines(path, request).record
    if record.library != library:
        pytest.skip(f"this-gpu builds with {record.library} here")
    weights = open_bundle(path).manifest.file("fp16/weights.bin").bytes
    assert (path / record.plans[0].path).stat().st_size < weights
    oracle = load_backend("pytorch", open_bundle(path), BackendOptions(model=reference))
    with open_edge(path, EdgeOptions(backend=library, backend_options=BackendOptions(precision="fp16"))) as edge:
        for row in compare_encoders(edge, oracle, pictures_of(None)):
            assert row.distance.cosine >= MIN_COSINE["fp16"], row


@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_are_kept_beside_the_plan(bundle: Path, tmp_path: Path, library: str) -> None:
    path = build(bundle, tmp_path / "bundle", library, "fp16", "profiles")
    (plan,) = open_bundle(path).manifest.engines[0].plans
    assert plan.layers is not None
    assert json.loads((path / plan.layers).read_text())["Layers"]


@on_cuda
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_cuda_provider_gives_pytorch_s_embeddings_in_every_bucket(
    small_bundle: Path, reference: Path, precision: str
) -> None:
    """With attention fused, memory bound and kernels captured; from uint8 pixels too."""
    opened = open_bundle(small_bundle)
    oracle = load_backend("pytorch", opened, BackendOptions(model=reference))
    cuda = load_backend("onnxruntime", opened, BackendOptions(precision=precision, provider="cuda"))
    assert cuda.name == "onnxruntime-cuda"
    for grid in opened.manifest.buckets():
        check_same(cuda.run(grid, pixels := draw(grid, 1)), oracle.run(grid, pixels), MIN_COSINE[precision])
    shown = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    cpu = load_backend("onnxruntime", opened, BackendOptions(precision=precision))
    assert isinstance(cuda, PixelBackend)
    assert isinstance(cpu, PixelBackend)
    check_same(cuda.run_pixels(Grid(1, 8, 8), shown), cpu.run_pixels(Grid(1, 8, 8), shown), MIN_COSINE[precision])
    turns(cuda, opened.manifest.buckets() * 8)
    cuda.close()


@on_cuda
@pytest.mark.parametrize("heads", [2, 4])
def test_the_dynamic_graph_and_head_width_72(tmp_path: Path, heads: int) -> None:
    tower = TINY_VISION | {"hidden_size": 72 * heads, "num_heads": heads}
    model = encoder_checkpoint(tmp_path / "model", **tower).path
    export_bundle(str(model), tmp_path / "bundle", image_buckets="64x64", precisions=("fp16",), image_uint8=False)
    opened = open_bundle(tmp_path / "bundle")
    oracle = load_backend("pytorch", opened, BackendOptions(model=model))
    cuda = load_backend("onnxruntime", opened, BackendOptions(precision="fp16", provider="cuda"))
    grids = [Grid(1, 4, 4), Grid(1, 6, 10), Grid(2, 4, 6)]
    for grid in grids:
        check_same(cuda.run(grid, pixels := draw(grid, 2)), oracle.run(grid, pixels), MIN_COSINE["fp16"])
    turns(cuda, grids * 4)
    cuda.close()


@on_cuda
def test_a_bucket_is_captured_as_a_cuda_graph(small_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="edge")
    backend = load_backend("onnxruntime", open_bundle(small_bundle), BackendOptions(precision="fp16", provider="cuda"))
    backend.run(Grid(1, 8, 8), np.zeros((64, 1536), np.float32))
    assert "not captured" not in caplog.text
    backend.close()


def draw(grid: Grid, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((grid.patches, 1536)).astype(np.float32)


def check_same(ours: Embeddings, theirs: Embeddings, cosine: float) -> None:
    for one, other in zip((ours.embeds, *ours.deepstack), (theirs.embeds, *theirs.deepstack), strict=True):
        assert distance(one, other).cosine >= cosine
