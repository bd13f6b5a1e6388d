"""Golden pairs: what an encoder must make of pictures that every machine can draw, so that it can prove itself there.

A set has a file of them, `golden.npz`. The pictures are not in it: they follow from the grid alone, in whole numbers,
so that they are the same on every machine and with every library. By grid, such as "1x28x28", and by output it holds:

    1x28x28/embeds        float32 [rows, D]: rows `golden_rows` of the reference's output
    1x28x28.onnx/cosine   float64 [outputs]: of a quantized graph's outputs to the reference, when it was written

The reference is PyTorch in float32; that of a quantized set is the set that it was made from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.bundle.manifest import GraphRecord, Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.patch_values import patch_values
from qwen3vl_edge.contract.bundle.precision import as_computed

GOLDEN_NAME = "golden.npz"
ROWS = 4
_BLOCK = 10  # pixels: a side of the flat areas, which is no multiple of a patch's, so that patches have edges
_LENGTHS = 0.05  # quantization shortens an output, where it clips, or lengthens it by up to so much of itself
_SLACK = 2.0  # an engine may be so many times as far from the reference as the quantized graph was when it was measured


@dataclass(frozen=True)
class GoldenLimit:
    """How far an output may be from the golden one, by both measures of contract/bundle/distance.py."""

    min_cosine: float
    max_relative_l2: float


@dataclass(frozen=True)
class Golden:
    """The golden pairs of a set.

    Attributes:
        rows: by grid as text, of each output in the order of `vision.output_names`.
        cosines: by the graph's file name, of each output; of quantized sets alone.
    """

    rows: Mapping[str, tuple[NDArray[np.float32], ...]]
    cosines: Mapping[str, tuple[float, ...]]

    @property
    def grids(self) -> tuple[Grid, ...]:
        return tuple(map(Grid.parse, self.rows))

    def limits(self, precision: str, graph: GraphRecord, backend: str = "") -> tuple[GoldenLimit, ...]:
        """Limits of each output on a backend: parity's own, or what the quantized graph itself reaches.

        A cosine c of vectors whose lengths differ by a share d is a relative L2 of sqrt(d^2 + 2 (1 + d) (1 - c)).
        """
        row = as_computed(precision, backend)
        own = self.cosines.get(Path(graph.path).name)
        if own is None:
            return (GoldenLimit(row.min_cosine, row.max_relative_l2),) * len(graph.outputs)
        limits = []
        for cosine in own:
            least = min(row.min_cosine, 1 - _SLACK * (1 - cosine))
            farthest = math.sqrt(_LENGTHS**2 + 2 * (1 + _LENGTHS) * (1 - least))
            limits.append(GoldenLimit(least, max(row.max_relative_l2, farthest)))
        return tuple(limits)


def golden_input(grid: Grid, vision: VisionSpec, preprocessing: Preprocessing) -> EncoderInput:
    """The picture or clip of a grid, as both kinds of graph take it."""
    frames = golden_frames(grid, vision.geometry)
    pixels = frames[0] if grid.t == 1 else None
    return EncoderInput(grid, patch_values(frames, grid, vision, preprocessing), pixels)


def golden_frames(grid: Grid, geometry: PatchGeometry) -> NDArray[np.uint8]:
    """uint8 [frames, H, W, 3]: flat areas, a ramp and grain, in whole numbers; an image has one frame."""
    height, width = geometry.pixels(grid)
    frames = 1 if grid.t == 1 else geometry.frames(grid)
    blocks = _bytes(f"areas {grid}", (frames, -(-height // _BLOCK), -(-width // _BLOCK), 3))
    areas = blocks.repeat(_BLOCK, axis=1).repeat(_BLOCK, axis=2)[:, :height, :width]
    ramp = (np.arange(width) * 255 // width).astype(np.uint8)[:, None]
    grain = _bytes(f"grain {grid}", (1, height, width, 3))
    return areas // 2 + ramp // 4 + grain // 8


def _bytes(seed: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes of SHAKE256, which a standard fixes; a library's random numbers may change with its release."""
    data = hashlib.shake_256(seed.encode()).digest(int(np.prod(shape)))
    return np.frombuffer(data, np.uint8).reshape(shape)


def golden_rows(output: NDArray[Any]) -> NDArray[np.float32]:
    """The first row of an output, the last, and those between: attention brings every patch of a frame into each."""
    rows = np.unique(np.linspace(0, len(output) - 1, ROWS).round().astype(int))
    chosen: NDArray[np.float32] = output[rows].astype(np.float32)
    return chosen


def dynamic_golden_grids(vision: VisionSpec, buckets: Sequence[Grid]) -> list[Grid]:
    """Small grids by which a dynamic-shape graph proves itself, none of which has a bucket.

    From one merged token up; one where patches are as many as heads, if there is such a grid; and a clip.
    """
    merge, heads = vision.merge_size, vision.num_heads
    grids = [Grid(1, merge, merge), Grid(1, merge, 2 * merge), Grid(1, 2 * merge, 2 * merge), Grid(2, merge, 3 * merge)]
    if heads % merge**2 == 0:
        grids.append(Grid(1, merge, heads // merge))
    return [grid for grid in dict.fromkeys(grids) if grid not in buckets]


def write_golden(
    path: Path,
    outputs: Mapping[Grid, Sequence[NDArray[Any]]],
    names: Sequence[str],
    cosines: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write a set's golden pairs.

    Args:
        outputs: of the reference, by grid, in the order of `names`; whole.
        cosines: of quantized graphs, by file name.
    """
    arrays: dict[str, NDArray[Any]] = {
        f"{grid}/{name}": golden_rows(output)
        for grid, found in outputs.items()
        for name, output in zip(names, found, strict=True)
    }
    arrays |= {f"{file}/cosine": np.array(found) for file, found in (cosines or {}).items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the names for its own keywords


def read_golden(path: Path, names: Sequence[str]) -> Golden:
    """The golden pairs of a set; the bundle has checked the file's hash."""
    rows: dict[str, list[NDArray[np.float32]]] = {}
    cosines: dict[str, tuple[float, ...]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            first, _, name = key.rpartition("/")
            if name == "cosine":
                cosines[first] = tuple(float(value) for value in arrays[key])
            elif name == names[0]:
                rows[first] = [arrays[f"{first}/{output}"] for output in names]
    return Golden({grid: tuple(found) for grid, found in rows.items()}, cosines)
