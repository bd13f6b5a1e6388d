"""Every kind of graph against transformers' encoder, on pixels from the HF processor, for every released tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import PLAIN_TOWERS, RandomCheckpoint, encoder_checkpoint
from tests.support.encoders.export_models import (
    assert_close,
    dynamic_tables,
    graph_of,
    picture,
    processor_pixels,
    run_encoder,
    run_graph,
)

LIMITS = {"fp32": 1e-4, "fp16": 1e-2}
# Their widths are their own; two blocks are one that a level leaves and one that none does (ODD has more of both).
SHALLOW: dict[str, Any] = {"depth": 2, "deepstack_visual_indexes": [0]}
NARROW = {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16} | SHALLOW
WIDE = {"hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16} | SHALLOW
TOWERS = [
    pytest.param(NARROW | {"out_hidden_size": 2048}, id="2B"),
    pytest.param(NARROW | {"out_hidden_size": 2560}, id="4B", marks=pytest.mark.slow),
    pytest.param(WIDE | {"out_hidden_size": 4096}, id="8B-235B"),
    pytest.param(WIDE | {"out_hidden_size": 5120}, id="32B", marks=pytest.mark.slow),
    pytest.param(WIDE | {"out_hidden_size": 2048}, id="30B", marks=pytest.mark.slow),
]
# Qwen3.5 and later: no DeepStack.
PLAIN = [
    pytest.param(PLAIN_TOWERS["768"] | {"depth": 1}, id="768"),
    pytest.param(PLAIN_TOWERS["1024"] | {"depth": 2}, id="1024", marks=pytest.mark.slow),
    pytest.param(PLAIN_TOWERS["1152"] | {"depth": 2}, id="1152", marks=pytest.mark.slow),
    pytest.param(PLAIN_TOWERS["768"], id="768-whole", marks=pytest.mark.slow),
    pytest.param(PLAIN_TOWERS["1024"], id="1024-whole", marks=pytest.mark.slow),
    pytest.param(PLAIN_TOWERS["1152"], id="1152-whole", marks=pytest.mark.slow),
]
ODD = [
    pytest.param({"deepstack_visual_indexes": [1, 2]}, id="two-levels"),
    pytest.param({"deepstack_visual_indexes": [0, 1, 2, 3]}, id="four-levels"),
    pytest.param({"deepstack_visual_indexes": []}, id="no-levels"),
    pytest.param({"deepstack_visual_indexes": [3, 0, 2]}, id="levels-out-of-order"),
    pytest.param({"num_position_embeddings": 100}, id="positions-10x10"),
    pytest.param({"num_heads": 2, "hidden_size": 72}, id="head-width-36"),
    pytest.param({"num_heads": 2, "hidden_size": 144}, id="head-width-72"),
    pytest.param({"hidden_act": "gelu"}, id="exact-gelu"),
    pytest.param({"rope_parameters": {"rope_type": "axial", "rope_theta": 500.0}}, id="rope-theta"),
]


def check_everything(checkpoint: RandomCheckpoint, out: Path, image: Grid, clip: Grid, precision: str) -> None:
    """Export both buckets and compare the fixed, uint8 and dynamic graphs with the encoder."""
    height, width = image.h * 16, image.w * 16
    export_bundle(
        str(checkpoint.path),
        out,
        image_buckets=f"{height}x{width}",
        video_buckets=f"{clip.t * 2}x{clip.h * 16}x{clip.w * 16}",
        precisions=(precision,),
    )
    bundle, limit = open_bundle(out), LIMITS[precision]
    pixels = picture(height, width)
    values = processor_pixels(checkpoint.path, pixels)
    expected = run_encoder(checkpoint.encoder, image, values)
    outputs = run_graph(bundle, graph_of(bundle, "fixed", image, precision), {"pixel_values": values})
    assert outputs[0].dtype == np.dtype("float16" if precision == "fp16" else "float32")
    assert_close(outputs, expected, limit)
    folded = run_graph(bundle, graph_of(bundle, "image_uint8", image, precision), {"pixels": pixels})
    assert_close(folded, expected, limit)
    frames = [processor_pixels(checkpoint.path, picture(clip.h * 16, clip.w * 16, seed)) for seed in range(clip.t)]
    clip_values = np.concatenate(frames)
    clip_expected = run_encoder(checkpoint.encoder, clip, clip_values)
    outputs = run_graph(bundle, graph_of(bundle, "fixed", clip, precision), {"pixel_values": clip_values})
    assert_close(outputs, clip_expected, limit)
    dynamic = graph_of(bundle, "dynamic", None, precision)
    for grid, given, wanted in ((image, values, expected), (clip, clip_values, clip_expected)):
        feeds: dict[str, Any] = {"pixel_values": given} | dynamic_tables(bundle, grid)
        assert_close(run_graph(bundle, dynamic, feeds), wanted, limit)


@pytest.mark.parametrize("tower", TOWERS)
def test_released_towers(tower: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model", torch.bfloat16, **tower)
    check_everything(checkpoint, tmp_path / "bundle", Grid(1, 4, 10), Grid(2, 4, 6), "fp32")


@pytest.mark.parametrize("tower", PLAIN)
def test_released_towers_without_deepstack(tower: dict[str, Any], tmp_path: Path) -> None:
    moe = tower["hidden_size"] == 1152
    checkpoint = encoder_checkpoint(tmp_path / "model", torch.bfloat16, "qwen3_5_moe" if moe else "qwen3_5", **tower)
    check_everything(checkpoint, tmp_path / "bundle", Grid(1, 4, 10), Grid(2, 4, 6), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("vision", ODD)
def test_odd_towers(vision: dict[str, Any], precision: str, tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model", **vision)
    check_everything(checkpoint, tmp_path / "bundle", Grid(1, 6, 14), Grid(4, 10, 4), precision)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_stored_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model", dtype)
    check_everything(checkpoint, tmp_path / "bundle", Grid(1, 8, 6), Grid(2, 2, 2), "fp32")


def test_frames_do_not_see_each_other(tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model")
    export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="", video_buckets="4x64x96", dynamic=False)
    bundle, clip = open_bundle(tmp_path / "b"), Grid(2, 4, 6)
    graph = graph_of(bundle, "fixed", clip, "fp32")
    first, second, other = (processor_pixels(checkpoint.path, picture(64, 96, seed)) for seed in range(3))
    one = run_graph(bundle, graph, {"pixel_values": np.concatenate([first, second])})
    two = run_graph(bundle, graph, {"pixel_values": np.concatenate([first, other])})
    half = clip.tokens(2) // 2
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a[:half], b[:half])
        assert not np.allclose(a[half:], b[half:])
