"""float16's headroom: towers whose values it cannot hold stay right in true float16, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import encoder_checkpoint
from tests.support.encoders.export_models import dynamic_tables, graph_of, picture, processor_pixels, run_encoder
from tests.support.encoders.overflowing import PLANTS, Tensors, planted, rows
from tests.support.encoders.true_float16 import run_true_float16
from tests.support.run_cli import run_here

IMAGE, CLIP = Grid(1, 4, 6), Grid(2, 4, 4)


@pytest.mark.parametrize("name", PLANTS)
def test_every_graph_holds_in_true_float16(name: str, tmp_path: Path) -> None:
    plant, expected = PLANTS[name]
    checkpoint = planted(tmp_path / "model", plant)
    export_bundle(
        str(checkpoint.path), tmp_path / "b", image_buckets="64x96", video_buckets="4x64x64", precisions=("fp16",)
    )
    bundle = open_bundle(tmp_path / "b")
    headroom = bundle.manifest.precision("fp16").headroom
    assert {item.layer for item in headroom if item.precision == "fp32"} == expected
    pixels = picture(64, 96)
    image = processor_pixels(checkpoint.path, pixels)
    clip = np.concatenate([image, image + np.float32(0.1)])[: CLIP.patches]
    for kind, grid, feeds in (
        ("fixed", IMAGE, {"pixel_values": image}),
        ("image_uint8", IMAGE, {"pixels": pixels}),
        ("fixed", CLIP, {"pixel_values": clip}),
        ("dynamic", None, {"pixel_values": image} | dynamic_tables(bundle, IMAGE)),
    ):
        outputs = run_true_float16(bundle.graph_path(graph_of(bundle, kind, grid, "fp16")), feeds)
        wanted = run_encoder(checkpoint.encoder, grid or IMAGE, clip if grid == CLIP else image)
        for output, reference in zip(outputs, wanted, strict=True):
            apart = distance(output, reference)
            assert np.isfinite(output).all()
            assert apart.cosine >= PRECISIONS["fp16"].min_cosine, (kind, apart)
            assert apart.relative_l2 <= PRECISIONS["fp16"].max_relative_l2, (kind, apart)


def test_without_outliers_every_layer_is_float16(tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model")
    manifest = export_bundle(str(checkpoint.path), tmp_path / "b", precisions=("fp32", "fp16"), image_buckets="64x96")
    plain, half = manifest.precisions
    assert plain.headroom == ()
    assert {item.precision for item in half.headroom} == {"fp16"}
    assert len(half.headroom) == 1 + 4 * 5 + 4 * 2  # the patch embedding, five of each block, two of each merger
    for item in half.headroom:
        assert item.headroom == pytest.approx(65504 / item.largest)


def test_a_given_picture_is_measured_too(tmp_path: Path) -> None:
    """Patches that no drawn picture has: a linear that answers to flat white alone."""

    def white(tensors: Tensors) -> None:
        tensors["patch_embed.proj.weight"][3] = 4.0
        tensors["patch_embed.proj.bias"][3] = 0.0

    checkpoint = planted(tmp_path / "model", white)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (90, 60), "white").save(tmp_path / "pictures" / "white.png")
    options = ["--precision", "fp16", "--buckets", "64x96", "--no-dynamic"]
    largest = []
    for given in ([], ["--images", str(tmp_path / "pictures")]):
        out = tmp_path / f"b{len(given)}"
        run_here("export", str(checkpoint.path), "--out", str(out), *options, *given)
        largest.append(open_bundle(out).manifest.precision("fp16").headroom[0].largest)
    # A white patch: 512 values of (1 - mean) / std in each of three channels, two frames of 16 x 16.
    white_value = 4 * 512 * sum((1 - m) / s for m, s in ((0.48, 0.27), (0.46, 0.26), (0.41, 0.28)))
    assert largest[1] == pytest.approx(white_value, rel=1e-4)
    assert largest[0] < white_value


def test_what_float32_does_not_hold_is_refused(tmp_path: Path) -> None:
    checkpoint = planted(tmp_path / "model", rows("blocks.1.mlp.linear_fc2", 1e38))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.linear_fc2 .* float32 too"):
        export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="64x96", precisions=("fp16",))
    assert not (tmp_path / "b").exists()


def test_inspect_says_which_layers_stay_float32(tmp_path: Path) -> None:
    checkpoint = planted(tmp_path / "model", rows("blocks.1.mlp.linear_fc2"))
    export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="64x96", precisions=("fp16",), dynamic=False)
    shown = " ".join(run_here("inspect", str(tmp_path / "b")).stdout.split())
    assert "1 of 29 layers stay float32: blocks.1.mlp.linear_fc2 (up to 3" in shown
    assert "headroom to float16's largest value, least first:" in shown
