"""What the TensorRT backend does itself, on an emulated device (encoders/emulated_gpu.py). Real GPUs: test_gpu.

The plans are real ones of TensorRT-RTX; what runs in their place is the graph that each was built from.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord
from qwen3vl_edge.contract.errors import BucketError, EngineError
from qwen3vl_edge.contract.machine import tensorrt_library
from qwen3vl_edge.contract.machine.gpu import Gpu
from qwen3vl_edge.edge_runtime.backends import cuda, tensorrt
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.backends.tensorrt import TensorRTBackend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.tensorrt.build_engines import build_engines
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
from tests.support.encoders.emulated_gpu import EmulatedCuda, EmulatedLibrary
from tests.support.encoders.taking_turns import check_threads, outputs_of

ADA = Gpu("emulated", "8.9", 24 << 30, "13.0")
IMAGE, CLIP, OTHER = Grid(1, 8, 8), Grid(4, 6, 6), Grid(1, 6, 10)
Make = Callable[..., TensorRTBackend]


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """fp16 as profiles, one of a size that the bundle has no graph for; fp32 as a plan per bucket."""
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("backend") / "reference"))
    build_engines(path, BuildRequest("desktop-ada", precision="fp16", buckets=(IMAGE, CLIP, OTHER)))
    build_engines(path, BuildRequest("desktop-ada", precision="fp32", buckets=(IMAGE, CLIP), layout="per-bucket"))
    return open_bundle(path)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCuda:
    found = EmulatedCuda()
    monkeypatch.setattr(cuda, "cudart", found)
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: ADA)
    return found


def record_of(bundle: Bundle, precision: str) -> EngineRecord:
    return next(item for item in bundle.manifest.engines if item.precision == precision)


@pytest.fixture
def make(built: Bundle, emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Make:
    def engine(precision: str, library: str = "tensorrt") -> TensorRTBackend:
        record = record_of(built, precision)
        module = EmulatedLibrary(built, emulated, record.library_version)
        monkeypatch.setattr(tensorrt_library, "import_library", lambda name: module)
        return TensorRTBackend(library, built, record)

    return engine


def pixels_of(grid: Grid, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal((grid.patches, 1536)).astype(np.float32)


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_tensor_arrives_where_it_belongs(built: Bundle, make: Make, precision: str, library: str) -> None:
    reference = load_backend("onnxruntime", built, BackendOptions(precision=precision))
    engine = make(precision, library)
    grids = [IMAGE, CLIP, IMAGE] + ([OTHER, IMAGE, OTHER, CLIP] if precision == "fp16" else [])
    for seed, grid in enumerate(grids):
        pixels = pixels_of(grid, seed)
        ours, theirs = engine.run(grid, pixels), reference.run(grid, pixels)
        for mine, other in zip((ours.embeds, *ours.deepstack), (theirs.embeds, *theirs.deepstack), strict=True):
            assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
            # A bucket's own graph bakes the tables that the dynamic graph reads: equal but for rounding.
            np.testing.assert_allclose(mine, other, rtol=0, atol=2e-2 if precision == "fp16" else 1e-5)
    engine.close()


def test_embeddings_are_the_caller_s_own(make: Make) -> None:
    """The next picture does not overwrite what was returned for the last."""
    engine = make("fp16")
    first = engine.run(IMAGE, pixels_of(IMAGE, 1))
    kept = first.embeds.copy()
    engine.run(IMAGE, pixels_of(IMAGE, 2))
    np.testing.assert_array_equal(first.embeds, kept)
    engine.close()


def test_every_bucket_is_captured_and_launched(make: Make, emulated: EmulatedCuda) -> None:
    engine = make("fp16")
    assert len(emulated.captured) == 3
    for grid in (IMAGE, CLIP, OTHER):
        engine.run(grid, pixels_of(grid, 0))
    assert emulated.launches == 3
    engine.close()


def test_what_cannot_be_captured_runs_without(
    make: Make, emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = make("fp16")
    expected = captured.run(IMAGE, pixels_of(IMAGE, 0)).embeds
    captured.close()
    monkeypatch.setattr(emulated, "cudaGraphInstantiate", lambda graph, flags: (1, None))
    engine = make("fp16")
    np.testing.assert_array_equal(engine.run(IMAGE, pixels_of(IMAGE, 0)).embeds, expected)
    assert not emulated.captured
    engine.close()


def test_the_device_s_time_is_that_of_its_work(make: Make, emulated: EmulatedCuda) -> None:
    engine = make("fp16")
    for grid in (IMAGE, OTHER):
        started = time.perf_counter()
        seconds = engine.device_seconds(grid, pixels_of(grid, 0))
        assert 0 < seconds <= time.perf_counter() - started
    assert not emulated.events
    engine.close()


def test_everything_is_given_back(make: Make, emulated: EmulatedCuda) -> None:
    engine = make("fp16")
    engine.run(IMAGE, pixels_of(IMAGE, 0))
    assert emulated.memory
    engine.close()
    engine.close()
    assert not emulated.memory
    assert not emulated.queues
    assert not emulated.captured


def test_nothing_is_left_after_a_failed_load(
    make: Make, emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "cudaMallocHost", lambda size: (2, None))
    with pytest.raises(EngineError, match=r"cudaMallocHost of \d+ bytes failed \(emulated failure\)"):
        make("fp16")
    assert not emulated.memory
    assert not emulated.queues


def test_memory_is_allocated_once(make: Make, emulated: EmulatedCuda) -> None:
    engine = make("fp16")
    engine.run(OTHER, pixels_of(OTHER, 0))
    held = set(emulated.memory)
    for grid in (IMAGE, CLIP, OTHER):
        engine.run(grid, pixels_of(grid, 0))
    assert set(emulated.memory) == held
    engine.close()


def test_threads_take_turns(make: Make) -> None:
    engine = make("fp16")
    work = [(grid, pixels_of(grid, seed)) for seed, grid in enumerate([IMAGE, CLIP, OTHER] * 4)]
    check_threads(outputs_of(engine), work)
    engine.close()


def test_a_grid_beyond_the_engine_is_refused(make: Make) -> None:
    for engine, grid in ((make("fp16"), Grid(1, 6, 6)), (make("fp32"), OTHER)):
        with pytest.raises(BucketError, match="no profile for grid"):
            engine.run(grid, pixels_of(grid, 0))
        engine.close()


def test_a_plan_with_other_tensors_than_recorded_is_refused(
    built: Bundle, emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(built, "fp16")
    module = EmulatedLibrary(built, emulated, record.library_version)
    monkeypatch.setattr(tensorrt_library, "import_library", lambda name: module)
    plan = record.plans[0]
    fewer = replace(record, plans=(replace(plan, buckets=plan.buckets[:1]),))
    with pytest.raises(EngineError, match=r"other profiles.*qwen3vl-edge build"):
        TensorRTBackend("tensorrt", built, fewer)
    wrong = replace(plan, outputs=(replace(plan.outputs[0], dtype="float32"), *plan.outputs[1:]))
    with pytest.raises(EngineError, match=r"another embeds.*qwen3vl-edge build"):
        TensorRTBackend("tensorrt", built, replace(record, plans=(wrong,)))
    assert not emulated.memory


def test_compiled_kernels_are_kept_beside_the_plan(built: Bundle, make: Make) -> None:
    engine = make("fp16", "tensorrt_rtx")
    kept = (built.path / record_of(built, "fp16").plans[0].path).with_suffix(".kernels")
    assert kept.read_bytes() == b"kernels"
    kept.unlink()
    engine.close()


def test_the_edge_buckets_pictures_for_the_engine_and_not_for_the_bundle(
    built: Bundle, emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(built, "fp16")
    module = EmulatedLibrary(built, emulated, record.library_version)
    monkeypatch.setattr(tensorrt_library, "import_library", lambda name: module)
    options = EdgeOptions(backend="tensorrt_rtx", backend_options=BackendOptions(precision="fp16"))
    with open_edge(built.path, options) as edge:
        assert edge.policy.buckets == (IMAGE, CLIP, OTHER)
        assert edge.policy.choose(OTHER).exact
        with pytest.raises(BucketError):
            edge.policy.choose(Grid(1, 20, 40))
