"""Quantization says what it costs on pictures that it has not seen, and by default leaves out what costs too much."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle
from qwen3vl_edge.calibration.other_kinds import TEXTURES, draw_texture
from qwen3vl_edge.calibration.samples import HELD_OUT, Source, hold_out
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.export.bundle import export_bundle
from tests.support.encoders.export_models import graph_of, picture, run_graph

GRID = Grid(1, 8, 8)
FACTOR = 100.0


@pytest.fixture(scope="module")
def planted(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint with outliers inside of two MLPs, which no smoothing reaches; and 16 pictures."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(reference, folder / "model")
    file = folder / "model" / "model.safetensors"
    tensors = {name: value.astype(np.float32) for name, value in load_file(file).items()}
    prefix = next(name.split("blocks.")[0] for name in tensors if ".visual.blocks." in name)
    for layer in (1, 2):
        for part in ("weight", "bias"):
            tensors[f"{prefix}blocks.{layer}.mlp.linear_fc1.{part}"][7] *= FACTOR
        tensors[f"{prefix}blocks.{layer}.mlp.linear_fc2.weight"][:, 7] /= FACTOR
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "data").mkdir()
    for seed in range(16):
        Image.fromarray(picture(128, 128, seed)).save(folder / "data" / f"{seed:02}.png")
    export_bundle(str(folder / "model"), folder / "b", image_buckets="128x128", dynamic=False)
    return folder


def test_the_cost_is_measured_on_both_and_outliers_are_left_out(planted: Path) -> None:
    plain = calibrate_bundle(planted / "b", CalibrationRequest("int8", planted / "data", auto_exclude=0.0)).record
    counted = [(item.pictures, item.count) for item in plain.figures]
    assert counted == [("calibration", 4), ("held-out", 2), ("drawn", 1), ("other kinds", len(TEXTURES))]
    assert min(item.cosine for item in plain.figures) < 0.998
    assert plain.excluded == ()
    default = calibrate_bundle(planted / "b", CalibrationRequest("int8", planted / "data"))
    assert {"blocks.1.mlp.linear_fc2", "blocks.2.mlp.linear_fc2"} & set(default.record.excluded)
    assert all(item.cosine >= (0.998 if item.pictures == "other kinds" else 0.999) for item in default.record.figures)
    bundle = open_bundle(planted / "b")
    assert bundle.manifest.precision("int8").calibration == default.record
    for seed in range(100, 108):  # neither observed nor measured with
        pixels = {"pixels": picture(128, 128, seed)}
        expected, outputs = (
            run_graph(bundle, graph_of(bundle, "image_uint8", GRID, name), pixels) for name in ("fp32", "int8")
        )
        for output, reference in zip(outputs, expected, strict=True):
            assert distance(output, reference).cosine >= 0.998


@pytest.mark.parametrize(("count", "held"), [(1, 0), (7, 0), (8, 1), (20, 2), (64, HELD_OUT), (1000, HELD_OUT)])
def test_few_pictures_are_all_observed(count: int, held: int) -> None:
    sources = [Source(str(index), [], str(index)) for index in range(count)]
    observed, rest = hold_out(sources)
    assert (len(observed), len(rest)) == (count - held, held)
    assert [*observed, *rest] == sources


def test_textures_are_of_other_kinds() -> None:
    """Each is itself, by values computed by hand, and none is another."""
    drawn = [draw_texture(index, 48, 64) for index in range(len(TEXTURES))]
    assert {item.shape for item in drawn} == {(48, 64, 3)}
    assert len({item.tobytes() for item in drawn}) == len(TEXTURES)
    stripes, lines, checks, ramp = (drawn[index][..., 0] for index in (2, 3, 4, 7))
    assert stripes[0, :17].tolist() == [28] * 8 + [228] * 8 + [28]  # 128 less and more 100
    assert lines[:13, 0].tolist() == [140] * 2 + [126] * 10 + [140]  # 128 and 12; 128 less 2.4
    assert checks[[0, 0, 6, 6], [0, 6, 0, 6]].tolist() == [116, 140, 140, 116]
    assert (ramp[0, 0], ramp[-1, -1]) == (28, 228)
