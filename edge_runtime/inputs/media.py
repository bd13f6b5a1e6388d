"""Images and clips of a conversation, fetched by qwen-vl-utils at the size of their bucket.

Where the bucket is the grid that `smart_resize` gives, the result is bit-identical to qwen-vl-utils' for
the same message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qwen3vl_edge.contract.bundle.buckets import BucketChoice, choose_bucket
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.inputs.clip_reader import open_clip_file
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import reading
from qwen3vl_edge.edge_runtime.inputs.sources.clips import open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture, open_pictures

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

    def tokens(self, grid: Grid) -> int:
        """Visual tokens of a grid."""
        return grid.tokens(self.geometry.merge_size)


@dataclass(frozen=True)
class FetchedMedia:
    """One picture or clip at the size of its bucket, as the HF processor takes it.

    Attributes:
        kind: "image" or "video".
        choice: its bucket.
        pixels: RGB PIL image, or float32 tensor [frames, 3, H, W] of 0 to 255; a placeholder where there is a window.
        metadata: of a clip, from which the timestamps are written: fps and frame indices. Empty for an image.
        window: of a camera, in place of a clip's pixels.
        draft: by how much a JPEG file was reduced as it was decoded; 1 for not at all.
        clip_notes: evidence about how a clip's file was read.
    """

    kind: str
    choice: BucketChoice
    pixels: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    window: Snapshot | None = None
    draft: int = 1
    clip_notes: dict[str, Any] = field(default_factory=dict)


def fetch_media(
    messages: Sequence[Message],
    policy: BucketPolicy,
    defaults: dict[str, dict[str, Any]],
    budget: MediaBudget | None = None,
    clip_seconds: str = "average",
) -> list[FetchedMedia]:
    """Fetch every image and clip of a conversation, in the order of the prompt; one is decoded at a time.

    Args:
        messages: Qwen's format: `{"role", "content": [{"type": "image", "image": …}, …]}`.
        policy: the buckets to choose from.
        defaults: per kind, keys such as `min_pixels` for elements that do not set them.
        budget: what they may cost.
        clip_seconds: a key of `CLIP_SECONDS` in `clip_reader.py`.

    Raises:
        InputError: a picture or clip that cannot be read.
        LimitError: too many, too large, or too slow.
        BucketError: no bucket serves one.
    """
    from qwen_vl_utils.vision_process import extract_vision_info

    budget = budget or MediaBudget()
    elements = extract_vision_info(list(messages))
    budget.add_media(len(elements))
    pictures = iter(open_pictures([element for element in elements if "video" not in element], budget))
    fetched = []
    for element in elements:
        budget.check()
        if "video" not in element:
            element = {**defaults.get("image", {}), **element}
            fetched.append(_image(element, next(pictures), policy, budget))
        elif isinstance(element["video"], Snapshot):
            fetched.append(_window(element["video"], policy, budget))
        else:
            fetched.append(_video({**defaults.get("video", {}), **element}, policy, budget, clip_seconds))
    return fetched


def _window(window: Snapshot, policy: BucketPolicy, budget: MediaBudget) -> FetchedMedia:
    budget.add_visual_tokens(policy.tokens(window.choice.grid))
    return FetchedMedia("video", window.choice, window.placeholder(policy.geometry), window.metadata(), window)


def _image(element: dict[str, Any], picture: Picture, policy: BucketPolicy, budget: MediaBudget) -> FetchedMedia:
    from qwen_vl_utils.vision_process import fetch_image

    element = {key: value for key, value in element.items() if key != "image_url"} | {"image": picture.decode()}
    patch = policy.geometry.patch_size
    try:
        image = fetch_image(element, image_patch_size=patch)
        choice = policy.choose(policy.geometry.image_grid(image.height, image.width))
        budget.add_visual_tokens(policy.tokens(choice.grid))
        if not choice.exact:
            # From the original again: resizing twice would blur the picture.
            image = fetch_image(_resized(element, choice.grid, policy.geometry), image_patch_size=patch)
            _check_size(choice.grid, policy.geometry.image_grid(image.height, image.width))
    except ContractError:
        raise
    except (AssertionError, OSError, ValueError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None
    return FetchedMedia("image", choice, image, draft=picture.draft)


def _video(element: dict[str, Any], policy: BucketPolicy, budget: MediaBudget, clip_seconds: str) -> FetchedMedia:
    with open_clip(element["video"], budget) as source:
        if isinstance(source, list):
            return _frame_list({**element, "video": source}, policy, budget)
        clip = open_clip_file(source, element, budget)
        notes = clip.notes(clip_seconds)
        if len(clip.indices) == 1:
            return replace(_frame_list({**element, "video": [clip.one_frame()]}, policy, budget), clip_notes=notes)
        patch = policy.geometry.patch_size
        height, width = clip.model_size(element, patch)
        choice = policy.choose(_grid(len(clip.indices), height, width, policy.geometry))
        budget.add_visual_tokens(policy.tokens(choice.grid))
        if not choice.exact:
            height, width = clip.model_size(_resized(element, choice.grid, policy.geometry), patch)
            _check_size(choice.grid, _grid(len(clip.indices), height, width, policy.geometry))
        frames = clip.frames(height, width, budget)
        return FetchedMedia("video", choice, frames, clip.metadata_with(clip_seconds), clip_notes=notes)


def _frame_list(element: dict[str, Any], policy: BucketPolicy, budget: MediaBudget) -> FetchedMedia:
    video, metadata = _fetch_frames(element, policy.geometry.patch_size)
    choice = policy.choose(_video_grid(video, policy.geometry))
    budget.add_visual_tokens(policy.tokens(choice.grid))
    if not choice.exact:
        video, metadata = _fetch_frames(_resized(element, choice.grid, policy.geometry), policy.geometry.patch_size)
        _check_size(choice.grid, _video_grid(video, policy.geometry))
    return FetchedMedia("video", choice, video, metadata)


def _fetch_frames(element: dict[str, Any], patch_size: int) -> tuple[Any, dict[str, Any]]:
    from qwen_vl_utils.vision_process import fetch_video

    with reading(f"of {len(element['video'])} frames"):
        video, metadata = fetch_video(element, image_patch_size=patch_size, return_video_metadata=True)
    return video, metadata


def _video_grid(video: Any, geometry: PatchGeometry) -> Grid:
    frames, _, height, width = video.shape
    return _grid(frames, height, width, geometry)


def _grid(frames: int, height: int, width: int, geometry: PatchGeometry) -> Grid:
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
