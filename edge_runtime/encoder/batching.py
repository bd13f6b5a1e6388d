"""Several images and clips in few encoder runs: temporal patches of one size are stacked, and long clips are split.

Attention does not cross temporal patches and positions depend on h and w alone. So k images of a size are the
k temporal patches of a clip to the encoder, and a clip is as many images as it has temporal patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from qwen3vl_edge.contract.bundle.buckets import split_frames
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import BucketError
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, EncoderBackend, ServedGrids, run_encoder

# A dynamic graph takes any number of temporal patches; past this many patches a run is large enough to fill the
# device, and its memory would only grow.
MAX_STACKED_PATCHES = 16_384


@dataclass(frozen=True)
class EncoderOutput:
    """The embeddings of an item, and the grids of the encoder runs that computed them, in the order they ran."""

    embeddings: Embeddings
    runs: tuple[Grid, ...]


def encode_items(backend: EncoderBackend, items: Sequence[EncoderInput], *, stack: bool) -> list[EncoderOutput]:
    """The embeddings of each item, in order.

    Args:
        stack: items of one size share runs where the backend serves that; without it only clips that have no
            bucket of their own are split.

    Raises:
        BucketError: no graphs serve an item.
    """
    serves = backend.serves
    groups: dict[tuple[int, int, bool, int], list[int]] = {}
    for index, item in enumerate(items):
        grid = item.grid
        # An item of the dynamic graph must not be batched with one that a fixed graph serves.
        fixed = split_frames(grid.t, _lengths(grid.h, grid.w, serves)) is not None
        alone = not stack or item.pixels is not None
        groups.setdefault((grid.h, grid.w, fixed, index if alone else -1), []).append(index)
    outputs: dict[int, EncoderOutput] = {}
    for members in groups.values():
        outputs.update(zip(members, _encode_group(backend, [items[index] for index in members]), strict=True))
    return [outputs[index] for index in range(len(items))]


def plan_runs(lengths: Sequence[int], h: int, w: int, serves: ServedGrids) -> tuple[int, ...]:
    """How many temporal patches each run takes, for items of `lengths` temporal patches, concatenated.

    Fixed graphs where their sizes add up to the total, because they also serve such items one by one; otherwise the
    dynamic graph, in runs of at most MAX_STACKED_PATCHES, but never less than one item.

    Raises:
        BucketError: there are neither.
    """
    runs = split_frames(sum(lengths), _lengths(h, w, serves))
    if runs is not None:
        return runs
    if not serves.dynamic:
        raise BucketError(
            f"no graphs make up grid {Grid(sum(lengths), h, w)}",
            field="buckets",
            expected=", ".join(map(str, serves.buckets)) or "none",
            remedy=f"Export the bundle with bucket {Grid(1, h, w)}, or with the dynamic-shape graph.",
        )
    planned: list[int] = []
    for length in lengths:
        if planned and (planned[-1] + length) * h * w <= MAX_STACKED_PATCHES:
            planned[-1] += length
        else:
            planned.append(length)
    return tuple(planned)


def _lengths(h: int, w: int, serves: ServedGrids) -> set[int]:
    """Temporal patches of the fixed graphs of a size."""
    return {bucket.t for bucket in serves.buckets if (bucket.h, bucket.w) == (h, w)}


def _encode_group(backend: EncoderBackend, items: Sequence[EncoderInput]) -> list[EncoderOutput]:
    """Items of one size, concatenated and cut into runs, and the outputs cut into items again."""
    first = items[0]
    if first.pixels is not None:
        return [EncoderOutput(run_encoder(backend, first), (first.grid,))]
    h, w = first.grid.h, first.grid.w
    runs = plan_runs([item.grid.t for item in items], h, w, backend.serves)
    pixels = first.pixel_values if len(items) == 1 else np.concatenate([item.pixel_values for item in items])
    outputs, start = [], 0
    for length in runs:
        rows = length * h * w
        outputs.append(backend.run(Grid(length, h, w), pixels[start : start + rows]))
        start += rows
    whole = concatenate(outputs)
    if len(items) == 1:
        return [EncoderOutput(whole, tuple(Grid(length, h, w) for length in runs))]
    tokens = len(whole.embeds) // sum(runs)
    parts = _cut(whole, [item.grid.t * tokens for item in items])
    ends = np.cumsum([item.grid.t for item in items]).tolist()
    return [
        EncoderOutput(part, _runs_of(end - item.grid.t, end, runs, h, w))
        for part, item, end in zip(parts, items, ends, strict=True)
    ]


def _runs_of(first: int, end: int, runs: Sequence[int], h: int, w: int) -> tuple[Grid, ...]:
    """The runs that encoded temporal patches `first` to `end` of their concatenation."""
    grids, start = [], 0
    for length in runs:
        if start < end and start + length > first:
            grids.append(Grid(length, h, w))
        start += length
    return tuple(grids)


def describe_runs(runs: Sequence[Grid]) -> str:
    """Such as "2 of 4x8x8, 1x8x8"."""
    counted = [(grid, len(list(same))) for grid, same in groupby(runs)]
    return ", ".join(str(grid) if count == 1 else f"{count} of {grid}" for grid, count in counted)


def concatenate(parts: Iterable[Embeddings]) -> Embeddings:
    """The embeddings of temporal patches, in order, as those of one clip."""
    first, *others = parts
    if not others:
        return first
    levels = zip(first.deepstack, *(part.deepstack for part in others), strict=True)
    embeds = np.concatenate([first.embeds, *(part.embeds for part in others)])
    return Embeddings(embeds, tuple(map(np.concatenate, levels)))


def _cut(whole: Embeddings, sizes: Sequence[int]) -> list[Embeddings]:
    parts, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        # Copies: a view would keep the other items' embeddings alive as long as this one's.
        parts.append(Embeddings(whole.embeds[rows].copy(), tuple(level[rows].copy() for level in whole.deepstack)))
        start += size
    return parts
