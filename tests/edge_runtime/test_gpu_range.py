"""On a GPU: float16 overflows, and what export keeps in float32 does not; a backend that overflows is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.edge_runtime.backends.proof_store import ProofStore
from qwen3vl_edge.edge_runtime.backends.proven import proven
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings
from qwen3vl_edge.export.bundle import export_bundle
from tests.support.encoders.export_models import picture, processor_pixels, run_encoder
from tests.support.encoders.overflowing import PLANTS, planted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="needs an NVIDIA GPU with its driver and cuda-bindings"),
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu on a GPU machine"
    ),
]
IMAGE = Grid(1, 4, 6)


def finite(found: Embeddings) -> bool:
    return all(np.isfinite(output).all() for output in (found.embeds, *found.deepstack))


# Of these some weight or bias does not fit float16 either, so that there is no graph of float16 alone to compare with.
LARGE_WEIGHTS = {"last block", "inside the MLP", "weights"}


@pytest.mark.parametrize("name", PLANTS)
def test_what_overflows_is_kept_in_float32(name: str, tmp_path: Path) -> None:
    checkpoint = planted(tmp_path / "model", PLANTS[name][0])
    values = processor_pixels(checkpoint.path, picture(64, 96))
    wanted = run_encoder(checkpoint.encoder, IMAGE, values)
    options = BackendOptions(precision="fp16", provider="cuda", model=checkpoint.path)
    # Without the check no headroom is measured: every layer is float16.
    for checked in (True,) if name in LARGE_WEIGHTS else (False, True):
        folder = tmp_path / f"checked-{checked}"
        export_bundle(
            str(checkpoint.path),
            folder,
            image_buckets="64x96",
            precisions=("fp16",),
            dynamic=False,
            image_uint8=False,
            checked=checked,
        )
        encoder = load_backend("onnxruntime", open_bundle(folder), options)
        found = encoder.run(IMAGE, values)
        encoder.close()
        assert finite(found) == checked
    for output, reference in zip((found.embeds, *found.deepstack), wanted, strict=True):
        apart = distance(output, reference)
        assert PRECISIONS["fp16"].accepts(apart.cosine, apart.relative_l2), apart


def test_a_backend_that_overflows_is_refused(tmp_path: Path) -> None:
    """PyTorch's fp16 encoder keeps no layer in float32; a bundle without an fp16 set cannot say that one has to be."""
    checkpoint = planted(tmp_path / "model", PLANTS["inside the MLP"][0])
    export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="64x96", precisions=("fp32",), dynamic=False)
    bundle = open_bundle(tmp_path / "b")
    options = BackendOptions(device="cuda", dtype="fp16", model=checkpoint.path)
    encoder = proven(load_backend("pytorch", bundle, options), bundle, "pytorch", options, ProofStore(None))
    with pytest.raises(EngineError, match="other embeddings than the golden ones"):
        encoder.run(IMAGE, processor_pixels(checkpoint.path, picture(64, 96)))
    encoder.close()
