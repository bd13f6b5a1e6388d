"""ONNX Runtime providers by name: the one asked for runs, or the reason is said. Never another in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.edge_runtime.backends.providers import PROVIDERS
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions

GRID = Grid(1, 8, 8)
LISTED = ort.get_available_providers()


@pytest.fixture(scope="module")
def own(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that providers may keep their caches in."""
    return open_bundle(shutil.copytree(bundle, tmp_path_factory.mktemp("providers") / "reference"))


@pytest.mark.skipif(find_gpu() is not None, reason="says what happens on a machine without a GPU")
@pytest.mark.parametrize("provider", ["cuda", "cuda-unfused", "tensorrt", "nv-tensorrt-rtx"])
def test_gpu_provider_without_a_gpu_is_an_error_and_not_the_cpu(
    own: Bundle, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"provider {provider} (did not start|is not installed|finds no device)"):
        load_backend("onnxruntime", own, BackendOptions(provider=provider))
    printed = capfd.readouterr()
    assert printed.out == ""  # --json owns stdout
    assert printed.err == ""


def test_every_provider_is_the_cpu_s_equal_or_refused(own: Bundle) -> None:
    """The CPU provider here; on other machines also what they have: OpenVINO, CUDA, TensorRT."""
    pixels = np.random.default_rng(0).standard_normal((GRID.patches, 1536)).astype(np.float32)
    reference = load_backend("onnxruntime", own, BackendOptions(precision="fp32")).run(GRID, pixels)
    ran = []
    for name in PROVIDERS:
        try:
            backend = load_backend("onnxruntime", own, BackendOptions(precision="fp32", provider=name))
        except InputError:
            continue
        result = backend.run(GRID, pixels)
        pairs = zip((result.embeds, *result.deepstack), (reference.embeds, *reference.deepstack), strict=True)
        for ours, theirs in pairs:
            assert distance(ours, theirs).relative_l2 < 1e-5, name
        ran.append(name)
    assert "cpu" in ran


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in LISTED, reason="needs onnxruntime-openvino in place of onnxruntime-gpu"
)
def test_openvino_keeps_its_compiled_graphs_in_the_bundle(own: Bundle) -> None:
    backend = load_backend("onnxruntime", own, BackendOptions(provider="openvino"))
    backend.run(GRID, np.zeros((GRID.patches, 1536), np.float32))
    assert list((own.path / "engines" / "onnxruntime-openvino").iterdir())
