"""What the CUDA provider's sessions are made of, on the CPU: attention as one operation, memory that is bound."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.backends import cuda
from qwen3vl_edge.edge_runtime.backends.cuda_provider.bound_session import BoundSession
from qwen3vl_edge.edge_runtime.backends.cuda_provider.fused_attention import fuse_attention
from qwen3vl_edge.edge_runtime.backends.cuda_provider.load import edited, load_cuda_graph
from qwen3vl_edge.edge_runtime.backends.onnx_graphs import GraphSession
from qwen3vl_edge.edge_runtime.backends.onnxruntime import OnnxRuntimeBackend
from qwen3vl_edge.edge_runtime.backends.providers import NEED_CUDA
from qwen3vl_edge.edge_runtime.backends.selection import graph_inputs
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import TINY_VISION, encoder_checkpoint
from tests.support.encoders.emulated_gpu import EmulatedCuda
from tests.support.encoders.export_models import assert_close, graph_of
from tests.support.encoders.older_attention import write_older_attention
from tests.support.encoders.taking_turns import check_threads, outputs_of

IMAGE, CLIP, OTHER = Grid(1, 8, 8), Grid(4, 6, 6), Grid(1, 6, 10)


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCuda:
    found = EmulatedCuda()
    monkeypatch.setattr(cuda, "cudart", found)
    return found


class FusedOnTheCpu(OnnxRuntimeBackend):
    """The backend as it is on a GPU: ONNX Runtime computes on the CPU, and device memory is emulated."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        super().__init__(bundle, options)
        self.edits = OnnxRuntimeBackend(bundle, replace(options, provider="cuda")).edits
        self._device = "cpu"
        self.ran_in: set[str] = set()

    def load_graph(self, graph: GraphRecord) -> object:
        return self._loaded_in_thread(graph)

    def _session(self, graph: GraphRecord, model: bytes | None = None, more_options: object = None) -> Any:
        assert model is not None
        assert b"MultiHeadAttention" in model
        self.ran_in.add(threading.current_thread().name)
        return super()._session(graph, model)


def pixels_of(grid: Grid, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal((grid.patches, 1536)).astype(np.float32)


@pytest.mark.parametrize("kind", ["fixed", "image_uint8", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_attention_becomes_one_operation_and_no_transpose_is_left(
    opened: Bundle, kind: str, precision: str
) -> None:
    vision = opened.manifest.vision
    graph = graph_of(opened, kind, None if kind == "dynamic" else IMAGE, precision)
    model = onnx.load(str(opened.graph_path(graph)), load_external_data=False)
    assert fuse_attention(model, vision.num_heads) == vision.depth
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == vision.depth
    assert "Softmax" not in kinds
    assert kinds.count("Transpose") == (1 if kind == "image_uint8" else 0)  # of the pixels


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fused_and_bound_sessions_give_the_file_s_embeddings(
    opened: Bundle, emulated: EmulatedCuda, precision: str
) -> None:
    options = BackendOptions(precision=precision, threads=1)
    ours, file = FusedOnTheCpu(opened, options), OnnxRuntimeBackend(opened, options)
    for seed, grid in enumerate((IMAGE, CLIP, OTHER, IMAGE)):
        pixels = pixels_of(grid, seed)
        one, other = ours.run(grid, pixels), file.run(grid, pixels)
        assert one.embeds.dtype == other.embeds.dtype
        assert_close(
            [one.embeds, *one.deepstack], [other.embeds, *other.deepstack], 1e-5 if precision == "fp32" else 2e-3
        )
    shown = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    one, other = ours.run_pixels(IMAGE, shown), file.run_pixels(IMAGE, shown)
    assert_close([one.embeds, *one.deepstack], [other.embeds, *other.deepstack], 1e-5 if precision == "fp32" else 2e-3)
    assert (ours.device_seconds(IMAGE, pixels_of(IMAGE, 0)) or 0) > 0
    assert ours.device_bytes == sum(ctypes.sizeof(block) for block in emulated.memory.values()) > 0
    assert file.device_bytes == 0
    ours.close()
    assert ours.device_bytes == 0
    assert not emulated.memory
    assert not emulated.queues


def test_each_thread_gets_its_own_picture_s_embeddings(opened: Bundle, emulated: EmulatedCuda) -> None:
    backend = FusedOnTheCpu(opened, BackendOptions(precision="fp32", threads=1))
    work = [(grid, pixels_of(grid, seed)) for seed, grid in enumerate((IMAGE, CLIP) * 4)]
    check_threads(outputs_of(backend), work)
    assert backend.ran_in == {"onnxruntime-gpu_0"}
    backend.close()


def test_a_reload_does_not_capture_while_the_old_one_runs(opened: Bundle, emulated: EmulatedCuda) -> None:
    """An allocation in another thread fails a capture: at no time are two sessions loaded or run."""
    busy = threading.Lock()

    @contextmanager
    def alone() -> Iterator[None]:
        assert busy.acquire(blocking=False), "another session is loaded or run"
        try:
            yield
        finally:
            busy.release()

    class Session:
        def __init__(self, inner: Any) -> None:
            self.io_binding, self._run = inner.io_binding, inner.run_with_iobinding

        def run_with_iobinding(self, binding: Any) -> None:
            with alone():
                self._run(binding)

    class Exclusive(FusedOnTheCpu):
        def _session(self, graph: GraphRecord, model: bytes | None = None, more_options: object = None) -> Any:
            with alone():
                return Session(super()._session(graph, model))

    options = BackendOptions(precision="fp32", threads=1)
    old, new = Exclusive(opened, options), Exclusive(opened, options)
    shown = pixels_of(IMAGE, 5)
    expected = old.run(IMAGE, shown).embeds
    loaded = threading.Event()

    def serve() -> int:
        count = 0
        while not loaded.is_set() or not count:
            np.testing.assert_array_equal(old.run(IMAGE, shown).embeds, expected)
            count += 1
        return count

    with ThreadPoolExecutor(2) as threads:
        serving = [threads.submit(serve) for _ in range(2)]
        try:
            for grid in (IMAGE, CLIP):
                new.run(grid, pixels_of(grid, 6))
        finally:
            loaded.set()
        assert all(future.result() for future in serving)
    old.close()
    np.testing.assert_array_equal(new.run(IMAGE, shown).embeds, expected)
    new.close()
    assert not emulated.memory


@pytest.mark.parametrize("provider", NEED_CUDA)
def test_what_captures_has_the_one_thread_and_others_need_not_wait_for_it(
    provider: str, opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TensorRT session may take minutes to make, while an older bundle serves."""
    ran_in = []

    def fail(*_: object) -> None:
        ran_in.append(threading.current_thread().name)
        raise InputError("no GPU")

    backend = OnnxRuntimeBackend(opened, BackendOptions(precision="fp32", provider=provider))
    monkeypatch.setattr(backend, "_session", fail)
    with pytest.raises(InputError, match="no GPU"):
        backend.check_provider()
    assert set(ran_in) == {"onnxruntime-gpu_0" if provider == "cuda" else threading.current_thread().name}


def test_a_session_that_cannot_capture_runs_bound_without(
    opened: Bundle, emulated: EmulatedCuda, caplog: pytest.LogCaptureFixture
) -> None:
    graph = graph_of(opened, "fixed", IMAGE, "fp32")
    backend = OnnxRuntimeBackend(opened, BackendOptions(precision="fp32", threads=1))
    asked: list[object] = []

    def make(graph: GraphRecord, model: bytes | None, options: object = None) -> object:
        asked.append(options)
        if options is not None:
            raise RuntimeError("this graph has nodes that cannot be captured")
        return backend._session(graph, model)

    bound = load_cuda_graph(opened, graph, make, device="cpu")
    assert isinstance(bound, BoundSession)
    assert asked == [{"enable_cuda_graph": "1"}, None]
    feeds = graph_inputs(opened.manifest.vision, graph, IMAGE, pixels_of(IMAGE, 3))
    assert_close(bound.run(feeds), backend.infer(backend.loaded(graph), feeds), 1e-5)
    bound.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rotation_and_gelu_as_one_kernel_each_give_the_file_s_embeddings(opened: Bundle, precision: str) -> None:
    vision, backend = opened.manifest.vision, OnnxRuntimeBackend(opened, BackendOptions(precision=precision, threads=1))
    for kind, grid in (("fixed", CLIP), ("dynamic", OTHER)):
        graph = graph_of(opened, kind, grid if kind == "fixed" else None, precision)
        copy = edited(opened.graph_path(graph), vision.num_heads, ("attention", "rotation", "gelu"))
        kinds = [node.op_type for node in onnx.load_from_string(copy).graph.node]
        assert kinds.count("RotaryEmbedding") == vision.depth
        assert kinds.count("Gelu") == vision.depth + len(vision.output_names)
        feeds = graph_inputs(vision, graph, grid, pixels_of(grid, 7))
        ours = GraphSession(backend._session(graph, copy), graph).run(feeds)
        assert_close(ours, backend.loaded(graph).run(feeds), 1e-5 if precision == "fp32" else 3e-3)


@pytest.mark.parametrize("older", [False, True])
def test_head_width_72_and_exports_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """Their queries, keys and values come by other ways, so transposes stay."""
    tower = TINY_VISION | {"hidden_size": 144, "num_heads": 2, "depth": 2, "deepstack_visual_indexes": [0, 1]}
    model = encoder_checkpoint(tmp_path / "model", **tower).path
    if older:
        write_older_attention(monkeypatch)
    export_bundle(str(model), tmp_path / "bundle", image_buckets="64x96", image_uint8=False)
    opened, grid = open_bundle(tmp_path / "bundle"), Grid(1, 4, 6)
    for kind in ("fixed", "dynamic"):
        graph = graph_of(opened, kind, grid if kind == "fixed" else None, "fp32")
        copy = onnx.load(str(opened.graph_path(graph)), load_external_data=False)
        assert fuse_attention(copy, 2) == 2
        assert any(node.op_type == "Transpose" for node in copy.graph.node) == older
        backend = OnnxRuntimeBackend(opened, BackendOptions(threads=1))
        feeds = graph_inputs(opened.manifest.vision, graph, grid, pixels_of(grid, 5))
        fused = GraphSession(backend._session(graph, copy.SerializeToString()), graph)
        assert_close(fused.run(feeds), backend.loaded(graph).run(feeds), 1e-5)


def test_a_graph_without_such_attention_stays_as_it_is(opened: Bundle) -> None:
    graph = graph_of(opened, "fixed", IMAGE, "fp32")
    model = onnx.load(str(opened.graph_path(graph)), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Softmax":
            model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))  # somebody looks at the weights
    before = model.SerializeToString()
    assert fuse_attention(model, opened.manifest.vision.num_heads) == 0
    assert model.SerializeToString() == before
