"""An engine proves itself on golden pairs before it serves: passes once a machine, and is refused where it is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.golden import (
    dynamic_golden_grids,
    golden_frames,
    golden_input,
    golden_rows,
    read_golden,
)
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import MANIFEST_NAME
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.gpu import Gpu
from qwen3vl_edge.edge_runtime.backends import proven as proven_module
from qwen3vl_edge.edge_runtime.backends.onnxruntime import OnnxRuntimeBackend
from qwen3vl_edge.edge_runtime.backends.proof_store import ProofStore, machine_store
from qwen3vl_edge.edge_runtime.backends.proven import ProvenBackend, ProvenPixelBackend, proven, untested
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, ServedGrids
from tests.support.encoders.export_models import relative_l2, run_encoder
from tests.support.encoders.faulty_bundle import with_node_changed

BUCKET, OTHER = Grid(1, 8, 8), Grid(1, 6, 6)
FREE = Grid(1, 4, 6)  # no bucket


class Wrong(OnnxRuntimeBackend):
    """ONNX Runtime, but for a library's fault: two rows of one grid's embeddings exchanged."""

    runs: list[Grid]

    def __init__(self, bundle: Bundle, grid: Grid | None) -> None:
        super().__init__(bundle, BackendOptions("fp32", threads=1))
        self.name, self.wrong, self.runs = "wrong", grid, []

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        self.runs.append(grid)
        found = super().run(grid, pixel_values)
        if grid != self.wrong:
            return found
        embeds = found.embeds.copy()
        embeds[[0, -1]] = embeds[[-1, 0]]
        return replace(found, embeds=embeds)


def patches(bundle: Bundle, grid: Grid) -> NDArray[np.float32]:
    return np.zeros((grid.patches, bundle.manifest.vision.patch_values), np.float32)


def test_golden_pictures_are_the_same_everywhere(bundle: Path) -> None:
    """SHAKE256 and whole numbers: the first pixel follows from the recipe by hand."""
    geometry = open_bundle(bundle).manifest.vision.geometry
    frames = golden_frames(Grid(1, 2, 2), geometry)
    assert (frames.shape, frames.dtype) == ((1, 32, 32, 3), np.uint8)
    area = hashlib.shake_256(b"areas 1x2x2").digest(1)[0]
    grain = hashlib.shake_256(b"grain 1x2x2").digest(1)[0]
    assert frames[0, 0, 0, 0] == area // 2 + 0 + grain // 8
    assert golden_frames(Grid(2, 2, 2), geometry).shape == (4, 32, 32, 3)


def test_golden_rows_are_first_last_and_between() -> None:
    rows = np.arange(10)[:, None].repeat(2, axis=1)
    assert golden_rows(rows)[:, 0].tolist() == [0, 3, 6, 9]
    assert golden_rows(rows[:1])[:, 0].tolist() == [0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_writes_what_pytorch_gives(bundle: Path, reference: Path, precision: str) -> None:
    opened = open_bundle(bundle)
    manifest = opened.manifest
    item = manifest.precision(precision)
    assert item.golden == f"{precision}/golden.npz"
    golden = read_golden(bundle / item.golden, manifest.vision.output_names)
    buckets = manifest.buckets()
    small = dynamic_golden_grids(manifest.vision, buckets)
    assert set(golden.grids) == {*buckets, *small}
    assert Grid(1, 2, 2) in small  # one merged token
    encoder = load_torch_encoder(open_checkpoint(str(reference)))
    for grid in (buckets[0], *small):
        pixels = golden_input(grid, manifest.vision, manifest.preprocessing).pixel_values
        for rows, output in zip(golden.rows[str(grid)], run_encoder(encoder, grid, pixels), strict=True):
            assert relative_l2(rows, golden_rows(output)) < 1e-6


def test_each_graph_proves_itself_once(bundle: Path, tmp_path: Path) -> None:
    opened, store = open_bundle(bundle), ProofStore(tmp_path / "store")
    inner = Wrong(opened, None)
    backend = proven(inner, opened, "onnxruntime", BackendOptions("fp32"), store)
    for _ in range(2):
        backend.run(OTHER, patches(opened, OTHER))
        backend.run(FREE, patches(opened, FREE))
    small = dynamic_golden_grids(opened.manifest.vision, inner.serves.buckets)
    assert inner.runs == [OTHER, OTHER, *small, FREE, OTHER, FREE]
    # Another process of this machine finds it on disk; another library, driver or file does not.
    again = Wrong(opened, None)
    proven(again, opened, "onnxruntime", BackendOptions("fp32"), store).run(OTHER, patches(opened, OTHER))
    assert again.runs == [OTHER]
    elsewhere = Wrong(opened, None)
    backend = proven(elsewhere, opened, "openvino", BackendOptions("fp32"), store)  # another library's versions
    backend.run(OTHER, patches(opened, OTHER))
    assert elsewhere.runs == [OTHER, OTHER]


def test_proofs_are_of_one_gpu_and_of_one_way_to_compute(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of GPU in one machine, and a tower that could not be compiled: each proves itself."""
    opened, store = open_bundle(bundle), ProofStore(tmp_path / "store")
    gpus = [Gpu("NVIDIA L4", "8.9", 2**34, "13.0"), Gpu("NVIDIA T4", "7.5", 2**34, "13.0")]
    asked: list[int] = []

    def find(index: int = 0) -> Gpu:
        asked.append(index)
        return gpus[index]

    monkeypatch.setattr(proven_module, "find_gpu", find)

    def proves(name: str, *edits: str) -> bool:
        inner = Wrong(opened, None)
        inner.name, inner.edits = name, edits
        proven(inner, opened, "pytorch", BackendOptions("fp32"), store).run(OTHER, patches(opened, OTHER))
        return len(inner.runs) == 2

    assert [proves("pytorch-cuda:1"), proves("pytorch-cuda:1")] == [True, False]
    assert proves("pytorch-cuda:1", "not-compiled")
    assert asked == [1, 1, 1]
    gpus[0], gpus[1] = gpus[1], gpus[0]  # the cards changed places
    assert proves("pytorch-cuda:1")
    proves("onnxruntime-cuda")
    assert asked[-1] == 0


@pytest.mark.parametrize("wrong", [BUCKET, Grid(1, 2, 4)], ids=["fixed", "dynamic"])
def test_a_wrong_engine_is_refused_and_another_named(bundle: Path, tmp_path: Path, wrong: Grid) -> None:
    opened, store = open_bundle(bundle), ProofStore(tmp_path / "store")
    inner = Wrong(opened, wrong)
    backend = proven(inner, opened, "onnxruntime", BackendOptions("fp32"), store)
    asked = wrong if wrong == BUCKET else FREE  # the dynamic graph is refused for every size
    for _ in range(2):
        with pytest.raises(EngineError) as refused:
            backend.run(asked, patches(opened, asked))
    text = str(refused.value)
    assert "backend wrong computes graph" in text
    assert "output embeds" in text
    assert "expected cosine >= 0.999999," in text
    assert "got cosine 0." in text
    assert "Take --backend onnxruntime, which passes here" in text
    assert inner.runs.count(wrong) == 1  # the refusal is not computed again
    assert not (tmp_path / "store").exists()
    backend.run(OTHER, patches(opened, OTHER))  # its other graphs serve


def test_what_a_cosine_does_not_see_is_refused(bundle: Path) -> None:
    """A level that is a hundredth too large: its direction is right to the bit."""

    class Larger(Wrong):
        def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
            found = super().run(grid, pixel_values)
            return replace(found, deepstack=(*found.deepstack[:2], found.deepstack[2] * np.float32(1.01)))

    opened = open_bundle(bundle)
    backend = proven(Larger(opened, None), opened, "onnxruntime", BackendOptions("fp32"), ProofStore(None))
    for grid in (BUCKET, FREE):
        with pytest.raises(EngineError, match=r"deepstack\.2.*relative L2 <= 0\.0001.*relative L2 0\.01"):
            backend.run(grid, patches(opened, grid))


def test_nan_is_refused(bundle: Path, tmp_path: Path) -> None:
    class Nothing(Wrong):
        def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
            found = super().run(grid, pixel_values)
            return replace(found, deepstack=(np.full_like(found.embeds, np.nan), *found.deepstack[1:]))

    opened = open_bundle(bundle)
    backend = proven(Nothing(opened, None), opened, "onnxruntime", BackendOptions("fp32"), ProofStore(None))
    with pytest.raises(EngineError, match=r"deepstack\.0.*got cosine nan"):
        backend.run(BUCKET, patches(opened, BUCKET))


def test_where_no_backend_passes_the_bundle_is_at_fault(bundle: Path, tmp_path: Path) -> None:
    def swap(node: Any) -> None:
        node.input[0] = "deepstack_merger_list.1.linear_fc2"

    faulty = with_node_changed(bundle, tmp_path / "faulty", "fp32/1x8x8.uint8.onnx", "deepstack.0", swap)
    opened = open_bundle(faulty)
    options = BackendOptions("fp32")
    backend = proven(load_backend("onnxruntime", opened, options), opened, "onnxruntime", options, ProofStore(None))
    backend.run(BUCKET, patches(opened, BUCKET))  # the graph that takes patches is sound
    assert isinstance(backend, ProvenPixelBackend)
    with pytest.raises(EngineError, match=r"uint8\.onnx wrongly.*No other backend.*export it again"):
        backend.run_pixels(BUCKET, np.zeros((128, 128, 3), np.uint8))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", pytest.param("int8-fp16", marks=pytest.mark.slow)])
def test_sound_sets_pass_on_every_backend_of_this_cpu(calibrated: Path, backend: str, precision: str) -> None:
    opened, options = open_bundle(calibrated), BackendOptions(precision, threads=1)
    engine = proven(load_backend(backend, opened, options), opened, backend, options, ProofStore(None))
    for grid in (*engine.serves.buckets, FREE):
        engine.self_test.prove(grid)
        if grid.t == 1 and grid != FREE:
            engine.self_test.prove(grid, pixels=True)
        assert engine.self_test.covers(grid)


def test_edges_prove_and_evidence_says_where_they_do_not(bundle: Path, samples: Path, tmp_path: Path) -> None:
    picture = {"type": "image", "image": str(samples / "colour.png")}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What colour is it?"}]}]
    with open_edge(bundle, EdgeOptions()) as edge:
        assert isinstance(edge.encoder, ProvenBackend)
        assert "self_test" not in edge.encode(messages).request.media[0].origin
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(self_test=False))) as edge:
        assert edge.encode(messages).request.media[0].origin["self_test"] == "off"
    older = Path(shutil.copytree(bundle, tmp_path / "older"))
    document = json.loads((older / MANIFEST_NAME).read_text())
    for item in document["precisions"]:
        del item["golden"]
    document["schema_version"] = 4
    (older / MANIFEST_NAME).write_text(json.dumps(document))
    with open_edge(older, EdgeOptions()) as edge:
        assert "not self-tested" in edge.encode(messages).request.media[0].origin["self_test"]
        assert untested(edge.encoder, BUCKET) is not None


def test_an_engine_with_buckets_of_its_own_is_not_covered_there(bundle: Path) -> None:
    """A TensorRT engine may be built for buckets that the bundle has no graph of."""

    class Built(Wrong):
        @property
        def serves(self) -> ServedGrids:
            return ServedGrids((FREE,), dynamic=False)

    opened = open_bundle(bundle)
    backend = proven(Built(opened, None), opened, "onnxruntime", BackendOptions("fp32"), ProofStore(None))
    assert untested(backend, FREE) is not None
    backend.run(FREE, patches(opened, FREE))


def test_the_store_is_the_users_cache(tmp_path: Path) -> None:
    assert not machine_store({}).holds(["a"])  # a service without a home: nothing is kept
    machine_store({}).add(["a"])
    for environment in (
        {"HOME": str(tmp_path)},
        {"XDG_CACHE_HOME": str(tmp_path)},
        {"CACHE_DIRECTORY": f"{tmp_path}:x"},
    ):
        store = machine_store(environment)
        assert not store.holds(["a", "b"])
        store.add(["a", "b"])
        assert store.holds(["a", "b"])
        assert not store.holds(["a"])
        shutil.rmtree(tmp_path / ".cache", ignore_errors=True)
        shutil.rmtree(tmp_path / "qwen3vl-edge", ignore_errors=True)
    file = tmp_path / "file"
    file.touch()
    machine_store({"XDG_CACHE_HOME": str(file)}).add(["a"])  # cannot be written: no error
