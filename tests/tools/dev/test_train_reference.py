"""Training of the reference checkpoint: where it is told to look, and that a killed run goes on as if nothing was."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen3vl_edge.tools.dev.train_reference.batches import Batch, Vocabulary, cells_of, make_batch
from qwen3vl_edge.tools.dev.train_reference.looks import DIGIT_LAYER, NAME_LAYER, named_things
from qwen3vl_edge.tools.dev.train_reference.scenes import COLOURS, SHAPES, Scene, Thing
from tests.support.paths import ROOT
from tests.support.waiting import until

RED, BLUE = COLOURS["red"], COLOURS["blue"]
SCENE = Scene(
    128,
    96,
    (240, 240, 240),
    (Thing("circle", "red", 16, 16, 14, RED), Thing("star", "blue", 112, 80, 14, BLUE)),
)


@pytest.fixture(scope="module")
def vocabulary(reference: Path) -> Vocabulary:
    return Vocabulary(reference)


def test_names_and_what_they_fit() -> None:
    text = "Is the red circle left of the star? The circle is red."
    found = [(text[:end], [thing.shape for _, thing in fits]) for end, fits in named_things(text, (SCENE,))]
    assert found == [
        ("Is the red circle", ["circle"]),
        ("Is the red circle left of the star", ["star"]),
        ("Is the red circle left of the star? The circle", ["circle"]),
        ("Is the red circle left of the star? The circle is", ["circle"]),
    ]
    assert named_things("Where is the green circle? How many objects?", (SCENE,)) == []
    other = Scene(128, 96, (240, 240, 240), SCENE.things[1:])
    ones = named_things("No, one is red and one is blue.", (SCENE, other))
    assert [[index for index, _ in fits] for _, fits in ones] == [[0, 0], [1]]


def test_cells_name_what_covers_them_and_its_place() -> None:
    cells = cells_of(SCENE)
    assert cells.colour.tolist() == [1, *[0] * 10, 1 + list(COLOURS).index("blue")]
    assert cells.shape.tolist() == [1, *[0] * 10, 1 + SHAPES.index("star")]
    np.testing.assert_allclose(cells.place[[0, 11]], [[16 / 128, 16 / 96], [112 / 128, 80 / 96]])
    np.testing.assert_allclose(cells.place[1], [1.5 / 4, 0.5 / 3])


@pytest.mark.parametrize("kind", ["objects", "number", "pair", "clip"])
def test_looks_go_from_the_word_to_visual_tokens_of_that_thing(vocabulary: Vocabulary, kind: str) -> None:
    batch: Batch = make_batch(random.Random(4), vocabulary, kind, (128, 160), 8, 1.0)
    pads = (vocabulary.id["image_pad"], vocabulary.id["video_pad"])
    tokens_per_row = batch.cells.colour.size // 8
    assert batch.looks
    for look in batch.looks:
        ids = batch.input_ids[look.row]
        visual = np.flatnonzero(np.isin(ids, pads))
        cells = look.row * tokens_per_row + np.searchsorted(visual, look.keys)
        assert np.isin(look.keys, visual).all()
        word = ids[look.query]
        colour, shape, digit, _ = look.factors
        if look.layer == NAME_LAYER:
            # Cells may be shared with a neighbour that covers more of them; most are the thing's own.
            assert colour < 0 or (batch.cells.colour[cells] == 1 + colour).mean() >= 0.5
            if word == vocabulary.words((SHAPES[shape],))[0]:
                assert (batch.cells.shape[cells] == 1 + shape).mean() >= 0.5
        else:
            assert look.layer == DIGIT_LAYER
            assert ids[look.query + 1] == vocabulary.encode(str(digit))[0] == batch.labels[look.row, look.query + 1]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole).wait(300) == 0
    process = train(killed)
    until((killed / "work" / "state.pt").exists, within=300)
    process.kill()
    process.wait()
    assert train(killed).wait(300) == 0
    one, other = (load_file(path / "out" / "model.safetensors") for path in (whole, killed))
    assert one.keys() == other.keys()
    assert any(np.abs(value).max() > 0 for value in one.values())
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def train(folder: Path) -> subprocess.Popen[bytes]:
    """Two steps of the encoder alone, two with the language model, a checkpoint after each second one."""
    folder.mkdir(exist_ok=True)
    sizes = ["--steps", "4", "--warm", "2", "--batch", "8", "--validate", "2", "--questions", "2", "--device", "cpu"]
    places = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    command = [sys.executable, "-m", "qwen3vl_edge.tools.dev.train_reference.train", *places, *sizes]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
