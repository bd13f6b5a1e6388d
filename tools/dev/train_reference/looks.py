"""Where the language model should look: the word that names an object, and the merged tokens that it covers.

Only training uses this. Left to the answers alone, the model learnt to see every colour and shape and still
named another object's colour: attention that starts spread over all objects gives no gradient that tells them
apart. So two heads of one layer are told, at each name, which tokens to attend to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.tools.dev.train_reference.scenes import COLOURS, SHAPES, Scene, Thing

NAME_LAYER, DIGIT_LAYER = 2, 3
"""A name needs DeepStack levels 0 and 1, which are in the input of layer 2; a digit needs level 2 (layer 3)."""
_NAME = re.compile(rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|object)\b(?: is a\b| is\b)?")
_ONE = re.compile(r"\bone is\b")


@dataclass(frozen=True)
class Look:
    """One row's token `query` should attend, at `layer`, to the tokens `keys` (int64 [n]).

    `factors` is what it should read there: index of colour, shape, digit and picture, -1 where there is no one answer.
    """

    layer: int
    row: int
    query: int
    keys: NDArray[np.int64]
    factors: tuple[int, int, int, int]


def named_things(text: str, scenes: tuple[Scene, ...]) -> list[tuple[int, list[tuple[int, Thing]]]]:
    """For each name of a single object in `text`: where the name ends, and (scene, thing) of all that it fits.

    The end of "the circle is" counts as well: there the next word is the circle's colour.
    """
    found = []
    for name in _NAME.finditer(text):
        colour, shape = name.groups()
        fits = [
            (index, thing)
            for index, scene in enumerate(scenes)
            for thing in scene.things
            if colour in (None, thing.colour) and shape in ("object", thing.shape)
        ]
        if fits:
            found += [(end, fits) for end in sorted({name.end(2), name.end()})]
    # "No, one is red and one is blue.": the first picture's, then the second's.
    for index, one in enumerate(_ONE.finditer(text)):
        found.append((one.end(), [(index, thing) for thing in scenes[index].things]))
    return found


def shared_factors(things: list[tuple[int, Thing]], pair: bool) -> tuple[int, int, int, int]:
    """What all of these (scene, thing) have in common, as `Look.factors`; the scene counts where it is a picture."""
    colours, shapes = {thing.colour for _, thing in things}, {thing.shape for _, thing in things}
    pictures = {index for index, _ in things} if pair else {0, 1}
    return (
        list(COLOURS).index(colours.pop()) if len(colours) == 1 else -1,
        SHAPES.index(shapes.pop()) if len(shapes) == 1 else -1,
        -1,
        pictures.pop() if len(pictures) == 1 else -1,
    )


def cells_under(scene: Scene, box: tuple[float, float, float, float], least: float) -> NDArray[np.int64]:
    """Merged tokens of the scene, int64 [n], of which the box covers at least `least` pixels."""
    return np.flatnonzero(coverage(scene, box) >= least)


def coverage(scene: Scene, box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Pixels of each 32x32 cell, float64 [rows, columns], that the box (left, top, right, bottom) covers."""
    left, top, right, bottom = box
    x = _overlap(left, right, scene.width // 32)
    y = _overlap(top, bottom, scene.height // 32)
    return np.asarray(y[:, None] * x[None, :])


def thing_box(thing: Thing) -> tuple[float, float, float, float]:
    """The square around a thing."""
    return (thing.x - thing.r, thing.y - thing.r, thing.x + thing.r, thing.y + thing.r)


def least_cover(thing: Thing) -> float:
    """Pixels from which a cell counts as covered by the thing."""
    return min(150.0, 0.8 * thing.r**2)


def _overlap(begin: float, end: float, cells: int) -> NDArray[np.float64]:
    starts = np.arange(cells) * 32.0
    return np.asarray(np.clip(np.minimum(end, starts + 32) - np.maximum(begin, starts), 0, None), dtype=np.float64)
