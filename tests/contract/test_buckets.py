"""Grids and buckets: parsing, arithmetic, and which bucket a picture goes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_edge.contract.bundle.buckets import choose_bucket, measure
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry, parse_image_buckets, parse_video_buckets
from qwen3vl_edge.contract.errors import BucketError

GEOMETRY = PatchGeometry()


def test_parse_buckets() -> None:
    assert parse_image_buckets("448x448, 640x480,448x448", GEOMETRY) == [Grid(1, 28, 28), Grid(1, 40, 30)]
    assert parse_video_buckets("8x448x448", GEOMETRY) == [Grid(4, 28, 28)]
    assert Grid.parse(str(Grid(4, 28, 28))) == Grid(4, 28, 28)
    assert Grid(1, 28, 28).tokens(2) == 196


@pytest.mark.parametrize("text", ["450x448", "448", "448x", "0x448", "-448x448", "axb", "448x448x448"])
def test_bad_image_bucket_is_named(text: str) -> None:
    with pytest.raises(BucketError) as caught:
        parse_image_buckets(text, GEOMETRY)
    assert caught.value.field in ("buckets", "--buckets")


def test_bad_side_names_the_remedy() -> None:
    with pytest.raises(BucketError, match="Use 448"):
        parse_image_buckets("450x448", GEOMETRY)


@pytest.mark.parametrize("text", ["7x448x448", "8x448", "8x450x448", "0x448x448"])
def test_bad_video_bucket_is_named(text: str) -> None:
    with pytest.raises(BucketError):
        parse_video_buckets(text, GEOMETRY)


def test_equal_grid_wins() -> None:
    choice = choose_bucket(Grid(1, 8, 8), [Grid(1, 16, 16), Grid(1, 8, 8)], dynamic=True)
    assert choice.exact
    assert choice.fixed
    assert (choice.scale, choice.distortion) == (1.0, 0.0)


def test_near_bucket_within_limits_is_taken() -> None:
    choice = choose_bucket(Grid(1, 30, 30), [Grid(1, 28, 28), Grid(1, 20, 40)], dynamic=True)
    assert choice.grid == Grid(1, 28, 28)
    assert choice.scale == pytest.approx(28 / 30)
    assert choice.distortion == pytest.approx(0.0)


@pytest.mark.parametrize("side", [4, 8, 18, 20, 22, 32, 46, 48])
def test_enlarging_is_as_bounded_as_shrinking(side: int) -> None:
    """0.7 to 1 / 0.7: beyond it the dynamic graph takes the picture, or a nearer bucket."""
    native, buckets = Grid(1, side, side), [Grid(1, 32, 32)]
    choice = choose_bucket(native, buckets, dynamic=True)
    assert choice.fixed == (0.7 <= 32 / side <= 1 / 0.7)
    assert choice.exact or choice.fixed
    nearer = choose_bucket(Grid(1, 8, 8), [Grid(1, 10, 10), *buckets], dynamic=True)
    assert (nearer.grid, nearer.fixed) == (Grid(1, 10, 10), True)
    # Nothing else serves it: enlarged by as little as can be, and the evidence has the scale.
    alone = choose_bucket(Grid(1, 8, 8), [Grid(1, 64, 64), *buckets], dynamic=False)
    assert (alone.grid, alone.scale) == (Grid(1, 32, 32), 4.0)
    with pytest.raises(BucketError, match="no bucket"):
        choose_bucket(Grid(1, 48, 48), buckets, dynamic=False)


def test_far_picture_goes_to_the_dynamic_graph_or_is_refused() -> None:
    buckets = [Grid(1, 28, 28)]
    choice = choose_bucket(Grid(1, 10, 40), buckets, dynamic=True)
    assert (choice.grid, choice.fixed) == (Grid(1, 10, 40), False)
    with pytest.raises(BucketError, match="no bucket"):
        choose_bucket(Grid(1, 10, 40), buckets, dynamic=False)


def test_frames_are_never_dropped() -> None:
    assert not choose_bucket(Grid(3, 28, 28), [Grid(4, 28, 28), Grid(1, 28, 28)], dynamic=True).fixed


sides = st.integers(1, 40).map(lambda half: 2 * half)
grids = st.builds(Grid, st.just(1), sides, sides)


@given(grids, st.lists(grids, min_size=1, max_size=6))
def test_choice_keeps_its_promises(native: Grid, buckets: list[Grid]) -> None:
    choice = choose_bucket(native, buckets, dynamic=True)
    assert choice.native == native
    if choice.fixed:
        assert choice.grid in buckets
        assert choice.exact or (choice.distortion <= 0.1 and 0.7 <= choice.scale <= 1 / 0.7)
    else:
        assert choice.grid == native


@given(grids, grids)
def test_distortion_is_symmetric_and_zero_for_equal_aspect(a: Grid, b: Grid) -> None:
    assert measure(a, b).distortion == pytest.approx(measure(b, a).distortion)
    assert measure(a, Grid(1, a.h * 2, a.w * 2)).distortion == pytest.approx(0.0)
