"""On a GPU: the straight tower, compiled and captured, gives PyTorch's embeddings, to each thread its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.torch_encoder import read_visual_tensors
from qwen3vl_edge.edge_runtime.backends.pytorch import StraightBackend
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.backends.straight.capture import CudaDevice, TowerRunner
from qwen3vl_edge.edge_runtime.backends.straight.tower import StraightTower
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend, ServedGrids
from qwen3vl_edge.tools.parity.pictures import pictures_of
from tests.support.encoders.compared import compare_encoders
from tests.support.encoders.taking_turns import check_threads, outputs_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a PyTorch for it"),
]
MIN_COSINE = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.99}
PICTURE, CLIP, NO_BUCKET = Grid(1, 8, 8), Grid(4, 6, 8), Grid(1, 4, 6)


def draw(grid: Grid, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((grid.patches, 1536)).astype(np.float32)


@pytest.fixture(scope="module")
def oracle(small_bundle: Path, reference: Path) -> EncoderBackend:
    return load_backend("pytorch", open_bundle(small_bundle), BackendOptions(model=reference))


def test_embeddings_are_pytorch_s_in_every_bucket(small_bundle: Path, reference: Path, oracle: EncoderBackend) -> None:
    options = BackendOptions(model=reference, device="cuda", precision="fp16")
    with open_edge(small_bundle, EdgeOptions("pytorch", options, wire_dtype="fp32")) as edge:
        assert (edge.encoder.name, edge.encoder.precision) == ("pytorch-cuda", "fp16")
        rows = compare_encoders(edge, oracle, pictures_of(None))
    assert {row.bucket for row in rows} == {str(PICTURE), str(CLIP)}
    for row in rows:
        assert row.distance.cosine >= MIN_COSINE["fp16"], row


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_types_are_too(small_bundle: Path, reference: Path, oracle: EncoderBackend, precision: str) -> None:
    """A compiled picture; a clip and another size kernel by kernel."""
    bundle, checkpoint = open_bundle(small_bundle), open_checkpoint(str(reference))
    serves = ServedGrids((PICTURE,), dynamic=True)
    backend = StraightBackend(bundle, checkpoint, torch.device("cuda"), precision, serves, compiled=True)
    assert backend.device_bytes > 0
    for grid in (PICTURE, CLIP, NO_BUCKET):
        found, want = (each.run(grid, draw(grid, 0)) for each in (backend, oracle))
        pairs = zip((found.embeds, *found.deepstack), (want.embeds, *want.deepstack), strict=True)
        assert min(distance(*pair).cosine for pair in pairs) >= MIN_COSINE[precision], grid
    backend.close()


@pytest.fixture(scope="module")
def backend(small_bundle: Path, reference: Path) -> Iterator[EncoderBackend]:
    options = BackendOptions(model=reference, device="cuda:0", precision="fp16")
    loaded = load_backend("pytorch", open_bundle(small_bundle), options)
    yield loaded
    loaded.close()


def test_threads_get_their_own_picture_s_embeddings(backend: EncoderBackend) -> None:
    work = [(grid, draw(grid, seed)) for seed, grid in enumerate([PICTURE, CLIP, NO_BUCKET] * 6)]
    check_threads(outputs_of(backend), work, repeats=5)


def test_a_captured_run_is_the_eager_one(small_bundle: Path, reference: Path, backend: EncoderBackend) -> None:
    """Bit for bit where the same kernels run; compiled ones round in other places."""
    vision, device = open_bundle(small_bundle).manifest.vision, torch.device("cuda")
    tensors = read_visual_tensors(open_checkpoint(str(reference)))
    tower = StraightTower(vision, tensors, torch.float16, device)
    captured, eager = (TowerRunner(tower, CudaDevice(device), grids) for grids in ((PICTURE, CLIP), ()))
    for grid in (PICTURE, CLIP):
        own = [captured.run(grid, draw(grid, seed)) for seed in range(3)]
        for seed, outputs in enumerate(own):
            for output, want in zip(outputs, eager.run(grid, draw(grid, seed)), strict=True):
                np.testing.assert_array_equal(output, want)
            compiled = backend.run(grid, draw(grid, seed)).embeds.astype(np.float64)
            want = outputs[0].astype(np.float64)
            assert np.linalg.norm(compiled - want) < 5e-3 * np.linalg.norm(want)
