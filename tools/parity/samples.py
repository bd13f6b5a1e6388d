"""Parity's samples: each picture at each graph that can serve it, as the graph takes it, and a backend's embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, PixelBackend, run_encoder
from qwen3vl_edge.tools.parity.pixels import to_rgb

PAN = 4  # pixels that a picture moves per frame in a clip made of it
UINT8 = "image_uint8"
_SHORT = {UINT8: " uint8", "dynamic": " dynamic"}


def graph_label(bucket: object, graph: str) -> str:
    """`1x8x8`, `1x8x8 uint8`, `1x8x10 dynamic`: a graph as tables name it."""
    return f"{bucket}{_SHORT.get(graph, '')}"


@dataclass(frozen=True)
class Case:
    """One picture at one graph.

    Attributes:
        picture: its name.
        graph: which kind of graph serves it, of `GRAPH_KINDS` in contract/bundle/manifest.py.
        input: with uint8 pixels for the kind "image_uint8" alone.
    """

    picture: str
    graph: str
    input: EncoderInput

    @property
    def grid(self) -> Grid:
        return self.input.grid

    @property
    def place(self) -> tuple[Grid, str]:
        """The grid and the kind of its graph."""
        return self.grid, self.graph

    @property
    def label(self) -> str:
        return graph_label(self.grid, self.graph)


@dataclass(frozen=True)
class Sample:
    """A case and the candidate's embeddings of it."""

    case: Case
    embeddings: Embeddings


def edge_cases(
    edge: Edge, pictures: dict[str, Any], progress: Callable[[str], None] = lambda bucket: None
) -> Iterator[Case]:
    """Every picture at every graph that can serve on the edge, whichever of them its preprocessing chooses.

    A bucket of an image has up to two: that of patches, and that of uint8 pixels where the backend runs those. The
    dynamic graph has a picture and a clip of grids that no bucket covers.
    """
    for grid, kind in _grids(edge):
        progress(str(grid))
        for name, picture in pictures.items():
            item = _encoder_input(edge, picture, grid)
            yield Case(name, kind, replace(item, pixels=None))
            if takes_pixels(edge.encoder, grid):
                yield Case(name, UINT8, item)


def takes_pixels(encoder: object, grid: Grid) -> bool:
    """Whether a backend also runs a graph of uint8 pixels for this grid."""
    return isinstance(encoder, PixelBackend) and encoder.takes_pixels(grid)


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
        clip = Grid(2, 2 * merge, 3 * merge)  # small: a clip's second temporal patch is what is new in it
        while clip in buckets:
            clip = Grid(clip.t, clip.h, clip.w + merge)
        yield clip, "dynamic"


def _encoder_input(edge: Edge, picture: Any, grid: Grid) -> EncoderInput:
    """The picture at the grid's size through the edge's own preprocessing; a clip is the picture, panned.

    An image has its uint8 pixels beside its patches, also where the preprocessing hands on patches alone.
    """
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
    if grid.t > 1 or item.pixels is not None:
        return item
    manifest = edge.bundle.manifest
    return replace(item, pixels=to_rgb(item.pixel_values, grid, manifest.vision, manifest.preprocessing)[0])


def _pan(picture: Any, offset: int) -> Any:
    from PIL import ImageChops

    return ImageChops.offset(picture.convert("RGB"), offset, 0)
