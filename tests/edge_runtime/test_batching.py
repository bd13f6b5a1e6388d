"""Images that share engine runs and clips that are split give what one run each gives, to the bit on this runtime."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.buckets import choose_bucket, split_frames
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import BucketError
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.batching import (
    MAX_STACKED_PATCHES,
    describe_runs,
    encode_items,
    plan_runs,
)
from qwen3vl_edge.edge_runtime.encoder.protocol import ServedGrids


def items(edge: Edge, *grids: Grid) -> list[EncoderInput]:
    rng = np.random.default_rng(3)
    values = edge.bundle.manifest.vision.patch_values
    return [EncoderInput(grid, rng.standard_normal((grid.patches, values)).astype(np.float32)) for grid in grids]


@pytest.mark.parametrize(
    "grids",
    [
        [Grid(1, 6, 6)] * 4,  # 1x6x6 and 4x6x6 have graphs
        [Grid(1, 6, 6)] * 3 + [Grid(4, 6, 6)],
        [Grid(1, 10, 14)] * 3,  # the dynamic graph
        [Grid(1, 6, 6), Grid(1, 10, 14), Grid(1, 6, 6), Grid(2, 10, 14)],
        [Grid(6, 6, 6)],  # 4 + 1 + 1
    ],
)
def test_stacked_is_one_by_one(edge: Edge, grids: list[Grid]) -> None:
    work = items(edge, *grids)
    stacked = encode_items(edge.encoder, work, stack=True)
    for item, made in zip(work, stacked, strict=True):
        assert sum(run.t for run in made.runs) >= item.grid.t
        found, alone = made.embeddings, edge.encoder.run(item.grid, item.pixel_values)
        np.testing.assert_array_equal(found.embeds, alone.embeds)
        for ours, theirs in zip(found.deepstack, alone.deepstack, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for one, other in zip(stacked, encode_items(edge.encoder, work, stack=False), strict=True):
        np.testing.assert_array_equal(one.embeddings.embeds, other.embeddings.embeds)


def test_origin_tells_the_runs(edge: Edge) -> None:
    """An image in a bucket of four says so; one that had a run of its own size says nothing."""
    from PIL import Image

    picture = {"type": "image", "image": Image.linear_gradient("L").resize((96, 96)).convert("RGB")}

    def runs(count: int) -> list[str | None]:
        content = [*[picture] * count, {"type": "text", "text": "?"}]
        return [item.origin.get("runs") for item in edge.encode([{"role": "user", "content": content}]).request.media]

    assert runs(1) == [None]
    assert runs(4) == ["4x6x6"] * 4
    assert runs(5) == ["4x6x6"] * 4 + [None]
    assert describe_runs([Grid(4, 6, 6), Grid(4, 6, 6), Grid(1, 6, 6)]) == "2 of 4x6x6, 1x6x6"


def test_runs_are_few_and_whole() -> None:
    serves = ServedGrids((Grid(1, 6, 6), Grid(4, 6, 6)), dynamic=False)
    assert plan_runs([1] * 9, 6, 6, serves) == (4, 4, 1)
    assert plan_runs([2, 1], 6, 6, serves) == (1, 1, 1)
    with pytest.raises(BucketError, match="1x8x8"):
        plan_runs([1], 8, 8, serves)
    many = plan_runs([1] * 40, 28, 28, ServedGrids((), dynamic=True))
    assert sum(many) == 40
    assert max(many) * 28 * 28 <= MAX_STACKED_PATCHES
    assert split_frames(6, {4}) is None
    assert split_frames(8, {3, 4, 5}) in ((4, 4), (5, 3))


def test_a_clip_of_any_length_fits_a_single_frame_bucket() -> None:
    buckets = [Grid(1, 8, 8), Grid(1, 20, 20)]
    assert choose_bucket(Grid(7, 8, 8), buckets, dynamic=True, split=True).fixed
    assert not choose_bucket(Grid(7, 8, 10), buckets, dynamic=True, split=True).fixed  # no pixel is lost to splitting
    near = choose_bucket(Grid(7, 22, 22), buckets, dynamic=False, split=True)
    assert near.grid == Grid(7, 20, 20)
    with pytest.raises(BucketError, match="no bucket"):
        choose_bucket(Grid(7, 8, 8), buckets, dynamic=False)
