"""Backends: ONNX Runtime against PyTorch on the same pixels, fp16 on the wire, refusals."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import BucketError, BundleError, InputError, ModelMismatchError
from qwen3vl_edge.edge_runtime.backends.onnxruntime import int8_products_saturate
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings
from qwen3vl_edge.tools.parity.pictures import pictures_of
from tests.support.encoders.compared import compare_encoders


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_equals_pytorch_on_every_bucket(bundle: Path, reference: Path, precision: str) -> None:
    oracle = load_backend("pytorch", open_bundle(bundle), BackendOptions(model=reference))
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision=precision))) as edge:
        rows = compare_encoders(edge, oracle, pictures_of(None))
    buckets = edge.policy.buckets or ()
    images = [grid for grid in buckets if grid.t == 1]
    assert len(rows) == (len(buckets) + len(images) + 2) * 4  # the dynamic graph has a picture and a clip
    assert {row.graph for row in rows} == {"fixed", "image_uint8", "dynamic"}
    for row in rows:
        assert row.passed, row
    if precision == "fp32":
        assert min(row.distance.cosine for row in rows) > 0.999999


def test_the_comparison_notices_a_wrong_level(edge: Edge, bundle: Path, reference: Path) -> None:
    class Swapped:
        name = "swapped"

        def __init__(self) -> None:
            self.inner = load_backend("pytorch", open_bundle(bundle), BackendOptions(model=reference))

        def run(self, grid: Grid, pixel_values: np.ndarray) -> Embeddings:  # type: ignore[type-arg]
            found = self.inner.run(grid, pixel_values)
            return Embeddings(found.embeds, (found.deepstack[1], found.deepstack[0], found.deepstack[2]))

        def close(self) -> None:
            self.inner.close()

    rows = compare_encoders(edge, Swapped(), pictures_of(None))
    broken = {row.output for row in rows if not row.passed}
    assert broken == {"deepstack.0", "deepstack.1"}


def test_fp16_rounds_and_refuses_what_it_cannot_hold() -> None:
    level = np.ones((2, 3), np.float32)
    found = Embeddings(level / 3, (level,)).to_fp16()
    assert found.embeds.dtype == np.float16
    np.testing.assert_array_equal(found.embeds, (level / 3).astype(np.float16))
    for value in (70000.0, np.nan, np.inf):
        with pytest.raises(InputError, match="float16"):
            Embeddings(level, (level * np.float32(value),)).to_fp16()


def test_unknown_backend_provider_precision_and_dtype_are_named(bundle: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(InputError, match="backend"):
        load_backend("abacus", opened, BackendOptions())
    with pytest.raises(InputError, match="provider"):
        load_backend("onnxruntime", opened, BackendOptions(provider="abacus"))
    with pytest.raises(BundleError, match="precision"):
        load_backend("onnxruntime", opened, BackendOptions(precision="int3"))
    with pytest.raises(InputError, match="--model"):
        load_backend("pytorch", opened, BackendOptions())
    with pytest.raises(InputError, match="wire dtype"):
        open_edge(bundle, EdgeOptions(wire_dtype="fp7"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backend_without_a_graph_for_the_grid_says_so(bundle: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    opened = open_bundle(bundle)
    fixed_only = tuple(
        replace(kept, graphs=tuple(graph for graph in kept.graphs if graph.kind == "fixed"))
        for kept in opened.manifest.precisions
    )
    loaded = load_backend(
        backend, replace(opened, manifest=replace(opened.manifest, precisions=fixed_only)), BackendOptions()
    )
    with pytest.raises(BucketError, match="no graph for grid 1x2x2"):
        loaded.run(Grid(1, 2, 2), np.zeros((4, 1536), np.float32))


def test_pytorch_backend_refuses_another_checkpoint(bundle: Path, reference: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in reference.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = (other / "config.json").read_text().replace("gelu_pytorch_tanh", "gelu")
    (other / "config.json").write_text(config)
    with pytest.raises(ModelMismatchError):
        load_backend("pytorch", open_bundle(bundle), BackendOptions(model=other))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="saturating int8 products are x86-64's alone")
@pytest.mark.parametrize(("flags", "saturates"), [("avx2", True), ("avx2 avx_vnni", False), ("avx512_vnni", False)])
def test_a_cpu_whose_int8_products_saturate_is_known(tmp_path: Path, flags: str, saturates: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu sse {flags} nx\n")
    assert int8_products_saturate(cpuinfo) == saturates


def test_an_int8_set_on_such_a_cpu_is_warned_of(calibrated: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_backend("onnxruntime", open_bundle(calibrated), BackendOptions(precision="int8")).close()
    assert ("no VNNI" in caplog.text) == int8_products_saturate()
    caplog.clear()
    load_backend("onnxruntime", open_bundle(calibrated), BackendOptions(precision="fp32")).close()
    assert not caplog.text
