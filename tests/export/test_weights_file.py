"""One weights file for all graphs, graphs of kilobytes, and a check that would notice wrong weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle, sha256_of
from qwen3vl_edge.contract.bundle.torch_encoder import run_torch_encoder
from qwen3vl_edge.contract.errors import BundleError, ParityError
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import RandomCheckpoint, encoder_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> RandomCheckpoint:
    return encoder_checkpoint(tmp_path / "model")


def test_a_bucket_adds_kilobytes(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    export_bundle(str(checkpoint.path), tmp_path / "one", image_buckets="64x64")
    export_bundle(str(checkpoint.path), tmp_path / "four", image_buckets="64x64,448x448,640x480,96x320")
    assert sha256_of(tmp_path / "one/fp32/weights.bin") == sha256_of(tmp_path / "four/fp32/weights.bin")
    for graph in (tmp_path / "four" / "fp32").glob("*.onnx"):
        assert graph.stat().st_size < 150_000


def test_the_check_notices_wrong_weights(
    checkpoint: RandomCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(encoder: Any, grid: Grid, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            encoder.blocks[2].attn.qkv.bias[0] += 1.0
        return run_torch_encoder(encoder, grid, pixels)

    monkeypatch.setattr("qwen3vl_edge.export.onnx.check.run_torch_encoder", spoiled)
    with pytest.raises(ParityError):
        export_bundle(str(checkpoint.path), tmp_path / "bundle", image_buckets="64x64")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"x", "altered"),
        (lambda data: bytes([data[0] ^ 255]) + data[1:], "altered"),
    ],
    ids=["cut", "appended", "flipped"],
)
def test_damage_is_named_when_a_bundle_is_opened(
    damage: Any, words: str, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    export_bundle(str(checkpoint.path), tmp_path / "bundle", image_buckets="64x64", dynamic=False)
    open_bundle(tmp_path / "bundle")
    weights = tmp_path / "bundle" / "fp32" / "weights.bin"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(BundleError, match=words):
        open_bundle(tmp_path / "bundle")
