"""Choose the bucket of a picture or clip, and measure the loss of pixels and aspect."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import BucketError


@dataclass(frozen=True)
class BucketChoice:
    """The grid chosen for a picture or clip, as the request records it.

    Attributes:
        native: the grid that `smart_resize` gives.
        grid: the grid that is encoded.
        fixed: True if a fixed-bucket graph serves it, False for the dynamic-shape graph.
        scale: linear scale from native to encoded pixels, sqrt of the area ratio; 1.0 is unchanged.
        distortion: aspect change, max(a/b, b/a) - 1; 0.0 is undistorted.
    """

    native: Grid
    grid: Grid
    fixed: bool
    scale: float
    distortion: float

    @property
    def exact(self) -> bool:
        """True when preprocessing is bit-identical to the unsplit model's."""
        return self.native == self.grid


def measure(native: Grid, grid: Grid, fixed: bool = True) -> BucketChoice:
    """Scale and distortion of encoding a picture of grid `native` in `grid`."""
    area = (grid.h * grid.w) / (native.h * native.w)
    aspect = (grid.w / grid.h) / (native.w / native.h)
    return BucketChoice(native, grid, fixed, math.sqrt(area), max(aspect, 1 / aspect) - 1)


def _loss(choice: BucketChoice) -> float:
    """Cost in nats: aspect change, plus pixels lost when shrinking; enlarging costs tokens, so a tenth."""
    shrink = -2 * math.log(choice.scale)
    return math.log1p(choice.distortion) + (shrink if shrink > 0 else -0.1 * shrink)


def split_frames(frames: int, lengths: Collection[int]) -> tuple[int, ...] | None:
    """The fewest runs whose lengths add up to `frames` temporal patches, longest first; None if no sum is exact.

    Attention does not cross temporal patches and positions depend on h and w alone, so encoding a clip in parts
    gives the same embeddings as encoding it at once.

    Args:
        lengths: available run lengths in temporal patches, such as {1, 4}.
    """
    best: list[tuple[int, ...] | None] = [()]
    for total in range(1, frames + 1):
        shorter = [(best[total - length], length) for length in lengths if 0 < length <= total]
        candidates = [(*runs, length) for runs, length in shorter if runs is not None]
        best.append(min(candidates, key=len, default=None))
    last = best[frames]
    return None if last is None else tuple(sorted(last, reverse=True))


def _split_candidates(native: Grid, buckets: Sequence[Grid]) -> list[Grid]:
    """Grids as long as `native` that several runs of the buckets cover."""
    sizes = dict.fromkeys((bucket.h, bucket.w) for bucket in buckets)
    return [
        Grid(native.t, h, w)
        for h, w in sizes
        if split_frames(native.t, {bucket.t for bucket in buckets if (bucket.h, bucket.w) == (h, w)})
    ]


def choose_bucket(
    native: Grid,
    buckets: Sequence[Grid],
    *,
    dynamic: bool,
    max_distortion: float = 0.1,
    min_scale: float = 0.7,
    split: bool = False,
) -> BucketChoice:
    """The bucket with the least loss of pixels and aspect among those with the same number of frames.

    An equal grid always wins. A bucket that would distort by more than `max_distortion`, shrink below `min_scale` or
    enlarge above 1 / `min_scale` is not used: the dynamic-shape graph, if there is one, then encodes the native grid.
    Without one a picture that is too large is rejected; one that is too small, of which nothing is lost, is enlarged
    by as little as the buckets allow.

    With `split` a clip may also be encoded in several runs of shorter buckets: if they have its exact size, or if
    no other graph fits it.

    Raises:
        BucketError: no bucket within the limits, and no dynamic-shape graph.
    """
    parts = _split_candidates(native, buckets) if split else []
    if native in buckets or native in parts:
        return measure(native, native)

    most_scale = 1 / min_scale if min_scale else math.inf

    def nearest(grids: Sequence[Grid], most: float = most_scale) -> BucketChoice | None:
        choices = (measure(native, grid) for grid in grids)
        usable = (one for one in choices if one.distortion <= max_distortion and min_scale <= one.scale <= most)
        return min(usable, key=_loss, default=None)

    whole = [bucket for bucket in buckets if bucket.t == native.t]
    if near := nearest(whole):
        return near
    if dynamic:
        return measure(native, native, fixed=False)
    if near := nearest(parts) or nearest(whole, math.inf) or nearest(parts, math.inf):
        return near
    raise BucketError(
        f"no bucket for grid {native} within distortion {max_distortion} and scale {min_scale}",
        field="buckets",
        expected=f"one of {', '.join(map(str, buckets)) or 'none'}",
        got=str(native),
        remedy="Resize the input, or export the bundle with a bucket for it or with the dynamic-shape graph.",
    )
