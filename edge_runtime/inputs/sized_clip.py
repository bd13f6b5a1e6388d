"""A clip at its bucket's size, from a file or a list of pictures, bit-identical to the pixel policy's upstream.

qwen-vl-utils' `fetch_video` resizes each picture of a list as a picture first (with the merged patch size for a
patch's, so by a grid twice as coarse) and then all of them; transformers' video processor resizes them once. Formulas:
`fetch_video` and `fetch_image` of qwen-vl-utils 0.0.14 (`vision_process.py`).
tests/edge_runtime/inputs/test_clip_reader.py, test_pixel_policy.py and tests/edge_runtime/lean/test_clips.py compare.
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
from qwen3vl_edge.contract.pixels.policy import EACH_FRAME, SIDES, PixelPolicy, own_keys
from qwen3vl_edge.contract.pixels.smart_resize import smart_resize
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Clip, Resize, clip_size, read_clip
from qwen3vl_edge.edge_runtime.inputs.clip_sampling import FRAME_FACTOR, stored_frames
from qwen3vl_edge.edge_runtime.inputs.sources.clips import open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget


@dataclass(frozen=True)
class ClipSizes:
    """How a clip's size is found.

    Attributes:
        choose: the bucket of a grid; pays for its visual tokens.
    """

    geometry: PatchGeometry
    pixels: PixelPolicy
    choose: Callable[[Grid], BucketChoice]

    def size(self, count: int, frames: NDArray[np.uint8], element: dict[str, Any]) -> tuple[int, int]:
        """Height and width of `count` frames like these, [F, H, W, 3].

        Raises:
            InputError: as `clip_size`.
        """
        _, height, width, _ = frames.shape
        return clip_size(self.pixels, count, height, width, element)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Of so many frames, of which the HF processor repeats the last one."""
        frames += -frames % self.geometry.temporal_patch_size
        return self.geometry.video_grid(frames, height, width)


@dataclass(frozen=True)
class ClipPath:
    """What the lean and the reference path do differently, and how a request wants its clips.

    Attributes:
        clip_seconds: a key of `CLIP_SECONDS` in `clip_reader.py`.
        resize: of frames, as the pixel policy's upstream does it.
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
        decoding: what was done to it as it was decoded, and the limits of its size, for the evidence.
    """

    choice: BucketChoice
    frames: NDArray[np.uint8]
    metadata: dict[str, Any]
    decoding: dict[str, str] = field(default_factory=dict)


def sized_clip(element: dict[str, Any], sizes: ClipSizes, budget: MediaBudget, path: ClipPath) -> SizedClip:
    """Fetch and resize the clip of a message's part.

    Args:
        element: the part, with `fps`, `nframes`, `max_pixels` and such.

    Raises:
        InputError: a clip that cannot be read.
        LimitError: too large, or too slow.
        BucketError: no bucket serves it.
    """

    def prepared(clip: Clip) -> SizedClip:
        decoding = clip.decoding(path.clip_seconds)
        count = len(clip.indices)
        if count == 1:
            return _of_pictures(element, [clip.one_frame()], sizes, budget, path.resize, decoding)
        choice = sizes.choose(sizes.grid(count, *clip.model_size(element, sizes.pixels)))
        frames = clip.frames(*sizes.geometry.pixels(choice.grid), budget, path.resize)
        decoding |= sizes.pixels.clip_evidence(count, element)
        return SizedClip(choice, frames, clip.metadata_with(path.clip_seconds), decoding)

    with open_clip(element["video"], budget) as source:
        if isinstance(source, list):
            return _of_pictures(element, source, sizes, budget, path.resize, {})
        return read_clip(source, element, budget, prepared, pyav_alone=path.pyav_alone)


def _of_pictures(
    element: dict[str, Any],
    pictures: Sequence[Image.Image],
    sizes: ClipSizes,
    budget: MediaBudget,
    resize: Resize,
    decoding: dict[str, str],
) -> SizedClip:
    each = sizes.pixels.video.bounds == EACH_FRAME
    count, metadata = stored_frames(
        element, len(pictures), FRAME_FACTOR if each else sizes.geometry.temporal_patch_size
    )
    try:
        if each:
            element = {**own_keys(sizes.pixels), **element}
            choice, frames = _resized_twice(element, pictures, count, sizes, budget, resize)
        else:
            choice, frames = _resized_once(element, pictures, count, sizes, resize)
    except ContractError:
        raise
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"clip of {len(pictures)} frames cannot be read ({error})", field="video") from None
    evidence = sizes.pixels.clip_evidence(count if each else len(pictures), element)
    return SizedClip(choice, frames, metadata, decoding | evidence)


def _resized_once(
    element: dict[str, Any], pictures: Sequence[Image.Image], count: int, sizes: ClipSizes, resize: Resize
) -> tuple[BucketChoice, NDArray[np.uint8]]:
    frames = _stacked(pictures, count)
    choice = sizes.choose(sizes.grid(count, *sizes.size(len(pictures), frames, element)))
    return choice, resize(frames, *sizes.geometry.pixels(choice.grid))


def _resized_twice(
    element: dict[str, Any],
    pictures: Sequence[Image.Image],
    count: int,
    sizes: ClipSizes,
    budget: MediaBudget,
    resize: Resize,
) -> tuple[BucketChoice, NDArray[np.uint8]]:
    _refuse_large(element, pictures, count, sizes, budget)
    factor = sizes.geometry.factor
    frames = _stacked(_as_pictures(element, pictures, factor), count)
    height, width = sizes.size(count, frames, element)
    choice = sizes.choose(sizes.grid(count, height, width))
    if not choice.exact:
        height, width = sizes.geometry.pixels(choice.grid)
        element = {**element, "resized_height": height, "resized_width": width}
        frames = _stacked(_as_pictures(element, pictures, factor), count)
        # Of less than four visual tokens, these first.
        at_least = sizes.size(count, frames, element)
        frames = resize(frames, *at_least).transpose(0, 2, 3, 1)
    return choice, resize(frames, height, width)


def _refuse_large(
    element: dict[str, Any], pictures: Sequence[Image.Image], count: int, sizes: ClipSizes, budget: MediaBudget
) -> None:
    """The pictures are resized before their grid is known, to whatever the element says.

    Raises:
        LimitError: far too many visual tokens.
    """
    size = clip_size(sizes.pixels, count, pictures[0].height, pictures[0].width, element)
    tokens = sizes.grid(count, *size).tokens(sizes.geometry.merge_size)
    if tokens > budget.limits.max_visual_tokens:
        budget.add_visual_tokens(tokens)


def _as_pictures(element: dict[str, Any], pictures: Sequence[Image.Image], factor: int) -> list[Image.Image]:
    """As `fetch_image` resizes each for `fetch_video`, whose factor it doubles."""
    resized = []
    for picture in pictures:
        if all(name in element for name in SIDES):
            height, width = smart_resize(element[SIDES[0]], element[SIDES[1]], 2 * factor)
        else:
            least, most = element.get("min_pixels"), element.get("max_pixels")
            height, width = smart_resize(picture.height, picture.width, 2 * factor, least, most)
        resized.append(picture.resize((width, height)))
    return resized


def _stacked(pictures: Sequence[Image.Image], count: int) -> NDArray[np.uint8]:
    """uint8 [count, H, W, 3]; the last one is repeated.

    Raises:
        InputError: pictures of more than one size.
    """
    if len(found := dict.fromkeys(picture.size for picture in pictures)) > 1:
        raise InputError(
            "the frames of a clip have more than one size",
            field="video",
            expected="one",
            got=", ".join(f"{width}x{height}" for width, height in [*found][:4]),
        )
    frames = [np.asarray(picture) for picture in pictures]
    return np.stack(frames + frames[-1:] * (count - len(frames)))
