"""A clip at its bucket's size, from a file or a list of pictures, bit-identical to qwen-vl-utils' `fetch_video`.

Formulas: `fetch_video` and `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`).
tests/edge_runtime/inputs/test_clip_reader.py and tests/edge_runtime/lean/test_clips.py compare both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Clip, Resize, read_clip
from qwen3vl_edge.edge_runtime.inputs.clip_sampling import clip_size, stored_frames
from qwen3vl_edge.edge_runtime.inputs.smart_resize import smart_resize
from qwen3vl_edge.edge_runtime.inputs.sources.clips import open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget

Choose = Callable[[Grid], BucketChoice]


@dataclass(frozen=True)
class ClipPath:
    """What the lean and the reference path do differently, and how a request wants its clips.

    Attributes:
        clip_seconds: a key of `CLIP_SECONDS` in `clip_reader.py`.
        resize: of frames.
        pyav_alone: no other reader is tried.
    """

    clip_seconds: str
    resize: Resize
    pyav_alone: bool


@dataclass(frozen=True)
class SizedClip:
    """A clip at its bucket's size.

    Attributes:
        frames: uint8 [F, 3, H, W].
        metadata: as qwen-vl-utils returns it; `fps` and `frames_indices` give the prompt's seconds.
        decoding: what was done to it as it was decoded, for the evidence.
    """

    choice: BucketChoice
    frames: NDArray[np.uint8]
    metadata: dict[str, Any]
    decoding: dict[str, str] = field(default_factory=dict)


def sized_clip(
    element: dict[str, Any], geometry: PatchGeometry, choose: Choose, budget: MediaBudget, path: ClipPath
) -> SizedClip:
    """Fetch and resize the clip of a message's part.

    Args:
        element: the part, with `fps`, `nframes`, `max_pixels` and such.
        choose: the bucket of a grid; pays for its visual tokens.

    Raises:
        InputError: a clip that cannot be read.
        LimitError: too large, or too slow.
        BucketError: no bucket serves it.
    """

    def prepared(clip: Clip) -> SizedClip:
        decoding = clip.decoding(path.clip_seconds)
        if len(clip.indices) == 1:
            return _of_pictures(element, [clip.one_frame()], geometry, choose, path.resize, decoding)
        height, width = clip.model_size(element, geometry.patch_size)
        choice = choose(_grid(len(clip.indices), height, width, geometry))
        frames = clip.frames(*geometry.pixels(choice.grid), budget, path.resize)
        return SizedClip(choice, frames, clip.metadata_with(path.clip_seconds), decoding)

    with open_clip(element["video"], budget) as source:
        if isinstance(source, list):
            return _of_pictures(element, source, geometry, choose, path.resize, {})
        return read_clip(source, element, budget, prepared, pyav_alone=path.pyav_alone)


def _grid(frames: int, height: int, width: int, geometry: PatchGeometry) -> Grid:
    frames += -frames % geometry.temporal_patch_size  # the HF processor repeats the last frame
    return geometry.video_grid(frames, height, width)


def _of_pictures(
    element: dict[str, Any],
    pictures: Sequence[Image.Image],
    geometry: PatchGeometry,
    choose: Choose,
    resize: Resize,
    decoding: dict[str, str],
) -> SizedClip:
    factor = geometry.factor
    count, metadata = stored_frames(element, len(pictures))
    try:
        frames = _stacked(element, pictures, count, factor)
        height, width = clip_size(element, count, frames.shape[1], frames.shape[2], factor)
        choice = choose(_grid(count, height, width, geometry))
        if not choice.exact:
            height, width = geometry.pixels(choice.grid)
            element = {**element, "resized_height": height, "resized_width": width}
            frames = _stacked(element, pictures, count, factor)
            # Of less than four visual tokens, these first.
            at_least = clip_size(element, count, frames.shape[1], frames.shape[2], factor)
            frames = resize(frames, *at_least).transpose(0, 2, 3, 1)
        return SizedClip(choice, resize(frames, height, width), metadata, decoding)
    except ContractError:
        raise
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"clip of {len(pictures)} frames cannot be read ({error})", field="video") from None


def _stacked(element: dict[str, Any], pictures: Sequence[Image.Image], count: int, factor: int) -> NDArray[np.uint8]:
    """uint8 [count, H, W, 3]: each picture as `fetch_image` resizes it for `fetch_video`, whose factor it doubles.

    The last one is repeated.
    """
    resized = []
    for picture in pictures:
        if "resized_height" in element and "resized_width" in element:
            height, width = smart_resize(element["resized_height"], element["resized_width"], 2 * factor)
        else:
            least, most = element.get("min_pixels"), element.get("max_pixels")
            height, width = smart_resize(picture.height, picture.width, 2 * factor, least, most)
        resized.append(np.asarray(picture.resize((width, height))))
    if len({picture.shape for picture in resized}) > 1:
        raise ValueError("its frames have different sizes")
    return np.stack(resized + resized[-1:] * (count - len(resized)))
