"""Encoder parity: every graph of a bundle against the PyTorch encoder in fp32, on the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract.distance import Distance, distance
from contract.grid import Grid
from edge_runtime.edge import Edge
from edge_runtime.engine import Engine
from edge_runtime.prompt import prepare_prompt

# What an fp32 graph must hold; fp16 rounds every weight and product to 11 bits.
MIN_COSINE = {"fp32": 0.99999, "fp16": 0.9999}


@dataclass(frozen=True)
class EncoderRow:
    """One output of one bucket, worst over the pictures."""

    bucket: str
    graph: str
    output: str
    pictures: int
    distance: Distance
    limit: float

    @property
    def passed(self) -> bool:
        return self.distance.cosine >= self.limit  # False for NaN


def compare_encoders(
    edge: Edge,
    oracle: Engine,
    pictures: dict[str, Any],
    progress: Callable[[str], None] = lambda bucket: None,
) -> list[EncoderRow]:
    """Run the edge's engine and the oracle on every picture at every bucket.

    The dynamic-shape graph is checked on one grid that no bucket covers.
    """
    rows: list[EncoderRow] = []
    for grid, kind in _grids(edge):
        progress(str(grid))
        worst: dict[str, Distance] = {}
        for picture in pictures.values():
            pixels = _pixels(edge, picture, grid)
            ours, reference = edge.engine.run(grid, pixels), oracle.run(grid, pixels)
            names = edge.bundle.manifest.vision.output_names
            pairs = zip(
                names,
                (ours.embeds, *ours.deepstack),
                (reference.embeds, *reference.deepstack),
                strict=True,
            )
            for name, actual, expected in pairs:
                found = distance(actual, expected)
                worst[name] = found.worst(worst[name]) if name in worst else found
        rows += [
            EncoderRow(str(grid), kind, name, len(pictures), value, MIN_COSINE[edge.engine.precision])
            for name, value in worst.items()
        ]
    return rows


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


def _pixels(edge: Edge, picture: Any, grid: Grid) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The picture at the grid's size through the edge's own preprocessing; a clip is the picture, panned."""
    height, width = edge.policy.geometry.pixels(grid)
    part: dict[str, Any] = {"resized_height": height, "resized_width": width}
    if grid.t == 1:
        part |= {"type": "image", "image": picture}
    else:
        frames = [_pan(picture, 4 * index) for index in range(edge.policy.geometry.frames(grid))]
        part |= {"type": "video", "video": frames, "min_pixels": 1, "max_pixels": height * width}
    messages = [{"role": "user", "content": [part]}]
    policy = type(edge.policy)(edge.policy.geometry, None, dynamic=True)
    prompt = prepare_prompt(messages, edge.processor, policy)
    assert prompt.media[0].grid == grid, (prompt.media[0].grid, grid)
    return prompt.media[0].pixel_values


def _pan(picture: Any, offset: int) -> Any:
    from PIL import ImageChops

    return ImageChops.offset(picture.convert("RGB"), offset, 0)
