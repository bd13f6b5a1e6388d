"""What is compared: each picture at each bucket, as `pixel_values`, and what an engine made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, run_encoder
from qwen3vl_edge.edge_runtime.inputs.prompt import PreparedMedia

PAN = 4  # pixels that a picture moves per frame when it stands for a clip


@dataclass(frozen=True)
class Case:
    """One picture at one bucket.

    Attributes:
        graph: "fixed" or "dynamic", which kind of graph serves the grid.
        pixel_values: float32 [t·h·w, channels·temporal·patch²] in the HF processor's layout.
        pixels: uint8 [H, W, 3] where the engine under test takes those.
    """

    grid: Grid
    graph: str
    picture: str
    pixel_values: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Sample:
    """A case and what the engine under test returned for it."""

    case: Case
    embeddings: Embeddings


def edge_cases(
    edge: Edge, pictures: dict[str, Any], progress: Callable[[str], None] = lambda bucket: None
) -> Iterator[Case]:
    """Every picture at every bucket of the edge, and at one grid of its dynamic graph that no bucket covers."""
    for grid, kind in _grids(edge):
        progress(str(grid))
        for name, picture in pictures.items():
            item = _prepared(edge, picture, grid)
            yield Case(grid, kind, name, item.pixel_values, item.pixels)


def run_cases(edge: Edge, cases: Iterable[Case]) -> Iterator[Sample]:
    """What the edge's engine returns for each case."""
    for case in cases:
        yield Sample(case, run_encoder(edge.engine, case.grid, case.pixel_values, case.pixels))


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


def _prepared(edge: Edge, picture: Any, grid: Grid) -> PreparedMedia:
    """The picture at the grid's size through the edge's own preprocessing; a clip is the picture, panned."""
    height, width = edge.policy.geometry.pixels(grid)
    part: dict[str, Any] = {"resized_height": height, "resized_width": width}
    if grid.t == 1:
        part |= {"type": "image", "image": picture}
    else:
        frames = [_pan(picture, PAN * index) for index in range(edge.policy.geometry.frames(grid))]
        part |= {"type": "video", "video": frames, "min_pixels": 1, "max_pixels": height * width}
    messages = [{"role": "user", "content": [part]}]
    policy = type(edge.policy)(edge.policy.geometry, None, dynamic=True)
    prompt = edge.prompt(messages, policy)
    assert prompt.media[0].grid == grid, (prompt.media[0].grid, grid)
    return prompt.media[0]


def _pan(picture: Any, offset: int) -> Any:
    from PIL import ImageChops

    return ImageChops.offset(picture.convert("RGB"), offset, 0)
