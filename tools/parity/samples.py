"""Parity's samples: each picture at each bucket as the encoder takes it, and a backend's embeddings of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, run_encoder

PAN = 4  # pixels that a picture moves per frame in a clip made of it


@dataclass(frozen=True)
class Case:
    """One picture at one bucket.

    Attributes:
        picture: its name.
        graph: "fixed" or "dynamic", which kind of graph serves the grid.
        input: with uint8 pixels where the candidate takes those.
    """

    picture: str
    graph: str
    input: EncoderInput

    @property
    def grid(self) -> Grid:
        return self.input.grid


@dataclass(frozen=True)
class Sample:
    """A case and the candidate's embeddings of it."""

    case: Case
    embeddings: Embeddings


def edge_cases(
    edge: Edge, pictures: dict[str, Any], progress: Callable[[str], None] = lambda bucket: None
) -> Iterator[Case]:
    """Every picture at every bucket of the edge, and at one grid of its dynamic graph that no bucket covers."""
    for grid, kind in _grids(edge):
        progress(str(grid))
        for name, picture in pictures.items():
            yield Case(name, kind, _encoder_input(edge, picture, grid))


def run_cases(edge: Edge, cases: Iterable[Case]) -> Iterator[Sample]:
    """The edge's embeddings of each case."""
    for case in cases:
        yield Sample(case, run_encoder(edge.encoder, case.input))


def _grids(edge: Edge) -> Iterable[tuple[Grid, str]]:
    buckets = edge.policy.buckets or ()
    yield from ((grid, "fixed") for grid in buckets)
    if edge.policy.dynamic:
        merge = edge.policy.geometry.merge_size
        largest = max(buckets, key=lambda grid: grid.patches, default=Grid(1, 4 * merge, 4 * merge))
        off = Grid(1, largest.h, largest.w + merge)
        while off in buckets:
            off = Grid(1, off.h, off.w + merge)
        yield off, "dynamic"


def _encoder_input(edge: Edge, picture: Any, grid: Grid) -> EncoderInput:
    """The picture at the grid's size through the edge's own preprocessing; a clip is the picture, panned."""
    height, width = edge.policy.geometry.pixels(grid)
    part: dict[str, Any] = {"resized_height": height, "resized_width": width}
    if grid.t == 1:
        part |= {"type": "image", "image": picture}
    else:
        frames = [_pan(picture, PAN * index) for index in range(edge.policy.geometry.frames(grid))]
        part |= {"type": "video", "video": frames, "min_pixels": 1, "max_pixels": height * width}
    messages = [{"role": "user", "content": [part]}]
    # To this grid whatever `smart_resize` says: it gives no size of less than four visual tokens.
    policy = replace(edge.policy, buckets=(grid,), dynamic=False, max_distortion=math.inf, min_scale=0.0, split=False)
    item = edge.prompt(messages, policy).media[0].input
    assert item.grid == grid, (item.grid, grid)
    return item


def _pan(picture: Any, offset: int) -> Any:
    from PIL import ImageChops

    return ImageChops.offset(picture.convert("RGB"), offset, 0)
