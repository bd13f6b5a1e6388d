"""Images and clips of a conversation, fetched by qwen-vl-utils at the size of their bucket.

Where the bucket is the grid that `smart_resize` gives, the result is bit-identical to qwen-vl-utils' for
the same message.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_edge.contract.bundle.buckets import BucketChoice, choose_bucket
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.inputs.sources.clips import open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import open_part

Message = dict[str, Any]


@dataclass(frozen=True)
class BucketPolicy:
    """Which grids the encoder serves, and from which distortion on the dynamic graph is used.

    With `buckets` None nothing is bucketed: every picture keeps its native grid (the unsplit model). With `split`
    a clip may take several runs of the encoder (`edge_runtime/encoder/batching.py`).
    """

    geometry: PatchGeometry
    buckets: tuple[Grid, ...] | None
    dynamic: bool
    max_distortion: float = 0.1
    min_scale: float = 0.7
    split: bool = False

    def choose(self, native: Grid) -> BucketChoice:
        if self.buckets is None:
            return BucketChoice(native, native, fixed=False, scale=1.0, distortion=0.0)
        return choose_bucket(
            native,
            self.buckets,
            dynamic=self.dynamic,
            max_distortion=self.max_distortion,
            min_scale=self.min_scale,
            split=self.split,
        )


@dataclass(frozen=True)
class FetchedMedia:
    """One picture or clip at the size of its bucket, as the HF processor takes it.

    Attributes:
        kind: "image" or "video".
        choice: its bucket.
        pixels: RGB PIL image, or float32 tensor [frames, 3, H, W] of 0 to 255; a placeholder where there is a window.
        metadata: of a clip, from which the timestamps are written: fps and frame indices. Empty for an image.
        window: of a camera, in place of a clip's pixels.
    """

    kind: str
    choice: BucketChoice
    pixels: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    window: Snapshot | None = None


def fetch_media(
    messages: Sequence[Message], policy: BucketPolicy, defaults: dict[str, dict[str, Any]]
) -> list[FetchedMedia]:
    """Fetch every image and clip of a conversation, in the order of the prompt.

    Args:
        messages: Qwen's format: `{"role", "content": [{"type": "image", "image": …}, …]}`.
        policy: the buckets to choose from.
        defaults: per kind, keys such as `min_pixels` for elements that do not set them.

    Raises:
        InputError, LimitError: a picture or clip that cannot be read.
        BucketError: no bucket serves one.
    """
    from qwen_vl_utils.vision_process import extract_vision_info

    return [_fetch(element, policy, defaults) for element in extract_vision_info(list(messages))]


def _fetch(element: dict[str, Any], policy: BucketPolicy, defaults: dict[str, dict[str, Any]]) -> FetchedMedia:
    if "video" not in element:
        return _image({**defaults.get("image", {}), **element}, policy)
    if isinstance(element["video"], Snapshot):
        window = element["video"]
        placeholder = window.placeholder(policy.geometry)
        return FetchedMedia("video", window.choice, placeholder, window.metadata(), window)
    return _video({**defaults.get("video", {}), **element}, policy)


def _image(element: dict[str, Any], policy: BucketPolicy) -> FetchedMedia:
    from qwen_vl_utils.vision_process import fetch_image

    element = {key: value for key, value in element.items() if key != "image_url"} | {"image": open_part(element)}
    patch = policy.geometry.patch_size
    try:
        image = fetch_image(element, image_patch_size=patch)
        choice = policy.choose(policy.geometry.image_grid(image.height, image.width))
        if not choice.exact:
            # From the original again: resizing twice would blur the picture.
            image = fetch_image(_resized(element, choice.grid, policy.geometry), image_patch_size=patch)
            _check_size(choice.grid, policy.geometry.image_grid(image.height, image.width))
    except ContractError:
        raise
    except (AssertionError, OSError, ValueError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None
    return FetchedMedia("image", choice, image)


def _video(element: dict[str, Any], policy: BucketPolicy) -> FetchedMedia:
    element = {**element, "video": open_clip(element["video"])}
    video, metadata = _fetch_video(element, policy.geometry.patch_size)
    choice = policy.choose(_video_grid(video, policy.geometry))
    if not choice.exact:
        video, metadata = _fetch_video(_resized(element, choice.grid, policy.geometry), policy.geometry.patch_size)
        _check_size(choice.grid, _video_grid(video, policy.geometry))
    return FetchedMedia("video", choice, video, metadata)


def _fetch_video(element: dict[str, Any], patch_size: int) -> tuple[Any, dict[str, Any]]:
    from qwen_vl_utils.vision_process import fetch_video

    label = element["video"] if isinstance(element["video"], str) else f"of {len(element['video'])} frames"
    try:
        # At its first call it prints the name of its reader to stderr.
        with contextlib.redirect_stderr(io.StringIO()):
            video, metadata = fetch_video(element, image_patch_size=patch_size, return_video_metadata=True)
    except Exception as error:  # each reader raises its own kinds
        raise InputError(
            f"clip {str(label)[:120]} cannot be read ({str(error).splitlines()[0][:160] if str(error) else error!r})",
            field="video",
            remedy="Check the file, and that decord or torchcodec is installed.",
        ) from None
    return video, metadata


def _video_grid(video: Any, geometry: PatchGeometry) -> Grid:
    frames, _, height, width = video.shape
    frames += -frames % geometry.temporal_patch_size  # the HF processor repeats the last frame
    return geometry.video_grid(frames, height, width)


def _resized(element: dict[str, Any], grid: Grid, geometry: PatchGeometry) -> dict[str, Any]:
    height, width = geometry.pixels(grid)
    return {**element, "resized_height": height, "resized_width": width}


def _check_size(expected: Grid, actual: Grid) -> None:
    if expected != actual:
        raise InputError(
            "qwen-vl-utils did not resize to the bucket",
            field="buckets",
            expected=str(expected),
            got=str(actual),
            remedy="Use buckets of at least 4 visual tokens.",
        )
