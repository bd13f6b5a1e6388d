"""The straight tower is upstream's module, its runner keeps threads apart, and its options mean what they say."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.golden import dynamic_golden_grids
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder, read_visual_tensors
from qwen3vl_edge.contract.errors import EngineError, InputError
from qwen3vl_edge.edge_runtime.backends import pytorch
from qwen3vl_edge.edge_runtime.backends.proof_store import ProofStore
from qwen3vl_edge.edge_runtime.backends.proven import ProvenBackend, proven
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend, StraightBackend, choose_dtype
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.backends.straight.capture import CpuDevice, Outputs, TowerRunner, Work
from qwen3vl_edge.edge_runtime.backends.straight.compiled_code import (
    PROCESSES_VARIABLE,
    VARIABLE,
    compiled_steps,
    keep_compiled_code,
)
from qwen3vl_edge.edge_runtime.backends.straight.tower import PLAIN, Linear, Merger, Steps, StraightTower
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, ServedGrids, bundle_serves
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.vision_config import read_vision_spec
from qwen3vl_edge.tools.dev.random_checkpoint import TOWERS, encoder_checkpoint
from tests.support.encoders.export_models import assert_close, run_encoder
from tests.support.encoders.overflowing import PLANTS, planted
from tests.support.encoders.taking_turns import check_threads

CPU = torch.device("cpu")
# Pictures from one merged token up, and clips.
GRIDS = (Grid(1, 2, 2), Grid(1, 2, 8), Grid(1, 8, 6), Grid(2, 2, 6), Grid(3, 4, 4))
# Three DeepStack levels, the last layer's among them.
SHORT: dict[str, Any] = {"depth": 4, "deepstack_visual_indexes": [0, 1, 3]}
HEADS_OF_64: dict[str, Any] = {"hidden_size": 128, "num_heads": 2}
HEADS_OF_72: dict[str, Any] = {"hidden_size": 144, "num_heads": 2}


def tower_of(checkpoint: Checkpoint, kind: torch.dtype = torch.float32) -> StraightTower:
    return StraightTower(read_vision_spec(checkpoint), read_visual_tensors(checkpoint), kind, CPU)


def draw(grid: Grid, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((grid.patches, 1536)).astype(np.float32)


@pytest.fixture(scope="module")
def tower(reference: Path) -> StraightTower:
    """The reference checkpoint's, in fp32."""
    return tower_of(open_checkpoint(str(reference)))


def test_fp32_is_upstream_s_in_every_bucket(bundle: Path, reference: Path, tower: StraightTower) -> None:
    manifest = open_bundle(bundle).manifest
    buckets = manifest.buckets()
    upstream = load_torch_encoder(open_checkpoint(str(reference)))
    runner = TowerRunner(tower, CpuDevice(), buckets)
    for grid in [*buckets, *dynamic_golden_grids(manifest.vision, buckets)]:
        assert_close(runner.run(grid, draw(grid)), run_encoder(upstream, grid, draw(grid)), 1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(HEADS_OF_64 | SHORT, id="64"),
        pytest.param(HEADS_OF_72 | SHORT, id="72"),
        pytest.param(TOWERS["2B"] | SHORT, id="2B", marks=pytest.mark.slow),
        pytest.param(TOWERS["8B"] | SHORT, id="8B", marks=pytest.mark.slow),
    ],
)
def test_fp32_is_upstream_s_in_released_shapes(tmp_path: Path, shape: dict[str, Any]) -> None:
    random = encoder_checkpoint(tmp_path, **shape)
    runner = TowerRunner(tower_of(open_checkpoint(str(tmp_path))), CpuDevice(), ())
    for grid in GRIDS:
        assert_close(runner.run(grid, draw(grid)), run_encoder(random.encoder, grid, draw(grid)), 1e-5)


def test_other_activations_merges_and_no_deepstack(tmp_path: Path) -> None:
    random = encoder_checkpoint(tmp_path, hidden_act="gelu", spatial_merge_size=3, deepstack_visual_indexes=[])
    runner = TowerRunner(tower_of(open_checkpoint(str(tmp_path))), CpuDevice(), ())
    for grid in (Grid(1, 3, 6), Grid(2, 3, 3)):
        assert_close(runner.run(grid, draw(grid)), run_encoder(random.encoder, grid, draw(grid)), 1e-5)


@pytest.mark.parametrize(("kind", "least"), [(torch.float16, 0.99999), (torch.bfloat16, 0.999)])
def test_half_types_keep_the_direction(reference: Path, tower: StraightTower, kind: torch.dtype, least: float) -> None:
    half = TowerRunner(tower_of(open_checkpoint(str(reference)), kind), CpuDevice(), GRIDS[:1])
    full = TowerRunner(tower, CpuDevice(), ())
    for grid in GRIDS:
        found = half.run(grid, draw(grid))
        assert {output.dtype for output in found} == {np.dtype("float16" if kind is torch.float16 else "float32")}
        for output, want in zip(found, full.run(grid, draw(grid)), strict=True):
            assert distance(output, want).cosine > least


class SameMemory(CpuDevice):
    """As a captured graph: each run writes its outputs to the same memory."""

    captures = 0

    def capture(self, work: Work) -> Work:
        self.captures += 1
        kept = work()

        def replay() -> Outputs:
            for place, output in zip(kept, work(), strict=True):
                place.copy_(output)
            return kept

        return replay


def test_threads_get_their_own_picture_s_embeddings(tower: StraightTower) -> None:
    device = SameMemory()
    runner = TowerRunner(tower, device, GRIDS[:3])
    assert device.captures == 3
    work = [(grid, draw(grid, seed)) for seed, grid in enumerate(GRIDS * 3)]  # of buckets, and of grids without one
    check_threads(runner.run, work)


def test_steps_are_compiled_for_more_sizes_than_torch_s_limit() -> None:
    """torch compiles one code object for 8 sizes by default, and refuses the ninth."""
    linear = Linear(torch.ones(4, 4), torch.zeros(4))
    for tokens in range(1, 11):
        merged = compiled_steps("eager").merge(torch.ones(tokens, 4), Merger(linear, linear))
        assert merged.shape == (tokens, 4)


def test_without_a_compiler_the_tower_runs_uncompiled(tower: StraightTower, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*arguments: object) -> Any:
        raise RuntimeError("no C compiler")

    grid = GRIDS[2]
    device = SameMemory()
    runner = TowerRunner(tower, device, GRIDS[:3], lambda: Steps(refuse, refuse, refuse, refuse))
    assert caplog.text.count("no C compiler") == 1
    assert device.captures == 3
    for output, want in zip(runner.run(grid, draw(grid)), plain(tower, grid), strict=True):
        np.testing.assert_array_equal(output, want)


def plain(tower: StraightTower, grid: Grid) -> list[NDArray[Any]]:
    with torch.inference_mode():
        return [output.numpy() for output in tower.run(grid, torch.from_numpy(draw(grid)), tower.tables(grid), PLAIN)]


def test_compiled_code_is_kept_by_version_and_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = keep_compiled_code("NVIDIA H200", environment)
    assert folder is not None
    assert environment[VARIABLE] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert f"torch-{torch.__version__}" in folder.name
    assert "compiled, once" in caplog.text
    caplog.clear()
    (folder / "kernel").touch()
    again = {"XDG_CACHE_HOME": str(tmp_path)}
    assert keep_compiled_code("NVIDIA H200", again) == folder
    assert again[PROCESSES_VARIABLE] == "1"  # nothing to compile
    assert not caplog.text
    other = keep_compiled_code("NVIDIA L4", {"XDG_CACHE_HOME": str(tmp_path)})
    assert other is not None
    assert "compiled again, once" in caplog.text
    assert folder.name in caplog.text
    assert other.name in caplog.text
    assert keep_compiled_code("any", {VARIABLE: "/own"}) == Path("/own")
    assert keep_compiled_code("any", {}) is None


@pytest.fixture
def loaded(bundle: Path, reference: Path) -> Iterator[Callable[..., Any]]:
    """Loads the backend with options."""
    opened: list[Any] = []

    def load(**options: Any) -> Any:
        opened.append(load_backend("pytorch", open_bundle(bundle), BackendOptions(model=reference, **options)))
        return opened[-1]

    yield load
    for backend in opened:
        backend.close()


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, "fp32"),
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "fp16"}, "fp16"),
        ({"dtype": "bf16"}, "bf16"),
        ({"precision": "fp16", "dtype": "fp32"}, "fp32"),
    ],
)
def test_dtype_and_precision_choose_the_type(
    loaded: Callable[..., Any], options: dict[str, str], precision: str
) -> None:
    backend = loaded(**options)
    assert (backend.name, backend.precision) == ("pytorch", precision)
    # fp32 on the CPU is upstream's own module, the oracle.
    assert isinstance(backend, PytorchBackend if precision == "fp32" else StraightBackend)


@pytest.mark.parametrize(
    ("written", "dtype"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32"), (None, "fp32")]
)
def test_auto_is_the_checkpoint_s_own_dtype_on_a_gpu(
    reference: Path, tmp_path: Path, written: str | None, dtype: str
) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((reference / file).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("torch_dtype", None)
    config.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config | ({"dtype": written} if written else {})))
    checkpoint = open_checkpoint(str(tmp_path))
    if written is None:  # then the tensors say it
        stored = {tensor.entry.dtype for tensor in checkpoint.visual_tensors.values()}
        dtype = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[stored.pop()]
    assert choose_dtype(BackendOptions(), torch.device("cuda"), checkpoint) == dtype
    assert choose_dtype(BackendOptions(), CPU, checkpoint) == "fp32"


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"device": "tpu"}, "--device", "cpu"),
        ({"device": "cuda:99"}, "--device", "cuda:99"),
        ({"dtype": "fp8"}, "--dtype", "fp32 or fp16 or bf16 or auto"),
        ({"precision": "int8"}, "--precision", "fp32 or fp16 or bf16"),
    ],
)
def test_what_it_does_not_have_is_named(
    loaded: Callable[..., Any], options: dict[str, str], field: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        loaded(**options)
    assert error.value.field == field


def test_fp16_is_refused_where_the_bundle_needs_float32_for_layers(tmp_path: Path) -> None:
    checkpoint = planted(tmp_path / "model", PLANTS["residual"][0])
    export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="64x96", precisions=("fp16",), dynamic=False)
    bundle, options = open_bundle(tmp_path / "b"), BackendOptions(model=checkpoint.path, dtype="fp16")
    with pytest.raises(InputError, match=r"expected bf16 or fp32, got fp16, with blocks\.1\.mlp\.linear_fc2 in"):
        load_backend("pytorch", bundle, options)
    load_backend("pytorch", bundle, replace(options, dtype="bf16")).close()


def test_a_closed_one_leaves_no_memory_to_the_garbage_collector(tower: StraightTower) -> None:
    runner = TowerRunner(tower, CpuDevice(), [Grid(1, 8, 8)])
    runner.run(Grid(1, 8, 8), draw(Grid(1, 8, 8)))
    left = weakref.ref(runner)
    gc.disable()
    try:
        del runner
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_it_proves_itself_and_evidence_names_it(
    bundle: Path, reference: Path, samples: Path, tmp_path: Path, dtype: str
) -> None:
    options = BackendOptions(model=reference, dtype=dtype)
    with open_edge(bundle, EdgeOptions("pytorch", options, cache=tmp_path)) as edge:
        assert isinstance(edge.encoder, ProvenBackend)
        picture = {"type": "image", "image": str(samples / "number.png")}
        content = [picture, {"type": "text", "text": "?"}]
        (media,) = edge.encode([{"role": "user", "content": content}]).request.media
    assert (media.origin["backend"], media.origin["precision"]) == ("pytorch", dtype)
    assert "self_test" not in media.origin
    assert media.embeds.dtype == np.float16


class Turned(StraightBackend):
    """Computes everything, and gives it in another order."""

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        found = super().run(grid, pixel_values)
        return replace(found, embeds=np.roll(found.embeds, 1, axis=0))


def test_one_that_could_not_be_compiled_is_another(
    bundle: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no C compiler")

    checkpoint, opened = open_checkpoint(str(reference)), open_bundle(bundle)
    serves = ServedGrids((Grid(1, 4, 4),), dynamic=True)
    edits = []
    for steps in (PLAIN, Steps(broken, broken, broken, broken)):
        monkeypatch.setattr(pytorch, "compiled_steps", lambda steps=steps: steps)
        edits.append(StraightBackend(opened, checkpoint, CPU, "fp32", serves, compiled=True).edits)
    assert edits == [(), ("not-compiled",)]


def test_a_wrong_one_is_refused(bundle: Path, reference: Path) -> None:
    opened, grid = open_bundle(bundle), Grid(1, 8, 8)
    checkpoint = open_checkpoint(str(reference))
    for kind, refused in ((StraightBackend, False), (Turned, True)):
        backend = kind(opened, checkpoint, CPU, "bf16", bundle_serves(opened, None), compiled=False)
        tested = proven(backend, opened, "pytorch", BackendOptions(model=reference), ProofStore(None))
        if refused:
            with pytest.raises(EngineError, match=r"expected cosine >= 0\.99, relative L2 <= 0\.14, got"):
                tested.run(grid, draw(grid))
        else:
            tested.run(grid, draw(grid))
