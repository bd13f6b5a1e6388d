"""Images and clips of a conversation, at the size of their bucket.

Where the bucket is the grid that the pixel policy gives, the result is bit-identical to that of the policy's upstream
for the same message: qwen-vl-utils, or transformers' processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_edge.contract.bundle.buckets import BucketChoice, choose_bucket
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.inputs.messages import (
    Message,
    clip_sources,
    errors_at,
    kind_of,
    placed_media_parts,
)
from qwen3vl_edge.edge_runtime.inputs.sized_clip import ClipPath, ClipSizes, sized_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture, open_pictures
from qwen3vl_edge.edge_runtime.inputs.torch_resize import frame_resize, resize_picture


@dataclass(frozen=True)
class BucketPolicy:
    """The size of a picture or clip: its limits, which grids the encoder serves, and when none is near enough.

    With `buckets` None nothing is bucketed: every picture keeps its native grid (the unsplit model). With `split`
    a clip may take several runs of the encoder (`edge_runtime/encoder/batching.py`).
    """

    geometry: PatchGeometry
    buckets: tuple[Grid, ...] | None
    dynamic: bool
    pixels: PixelPolicy
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

    def paid_by(self, budget: MediaBudget) -> ClipSizes:
        """Sizes of clips, of which the budget pays for the visual tokens."""

        def choose(native: Grid) -> BucketChoice:
            choice = self.choose(native)
            budget.add_visual_tokens(self.tokens(choice.grid))
            return choice

        return ClipSizes(self.geometry, self.pixels, choose)

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
        decoding: what was done to a picture or a clip as it was decoded, for the evidence.
    """

    kind: str
    choice: BucketChoice
    pixels: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    window: Snapshot | None = None
    decoding: dict[str, str] = field(default_factory=dict)


def fetch_media(
    messages: Sequence[Message],
    policy: BucketPolicy,
    budget: MediaBudget,
    clip_seconds: str = "average",
) -> list[FetchedMedia]:
    """Fetch every image and clip of a conversation, in the order of the prompt; one is decoded at a time.

    Args:
        messages: Qwen's format: `{"role", "content": [{"type": "image", "image": …}, …]}`.
        policy: the buckets to choose from, and the limits of elements that do not set them.
        budget: what they may cost.
        clip_seconds: a key of `CLIP_SECONDS` in `clip_reader.py`.

    Raises:
        InputError: a picture or clip that cannot be read.
        LimitError: too many, too large, or too slow.
        BucketError: no bucket serves one.
    """
    elements = list(placed_media_parts(messages))
    budget.add_media(len(elements))
    pictures = iter(open_pictures([item for item in elements if kind_of(item[1]) == "image"], budget))
    fetched = []
    for where, element in elements:
        budget.check()
        with errors_at(where):
            if kind_of(element) == "image":
                fetched.append(_image(element, next(pictures), policy, budget))
            elif isinstance(element["video"], Snapshot):
                fetched.append(_window(element["video"], policy, budget))
            else:
                fetched.append(_video(element, policy, budget, clip_seconds))
    return fetched


def check_no_windows(messages: Sequence[Message]) -> None:
    """Refuse limits of clips for a camera's window, whose frames are resized as they come.

    Raises:
        InputError: there is one.
    """
    if any(isinstance(source, Snapshot) for source in clip_sources(messages)):
        raise InputError(
            "a camera's window has its size already",
            field="mm_processor_kwargs",
            expected="limits of pictures alone (images_kwargs)",
            remedy="Set the camera's size in the daemon's settings.",
        )


def _window(window: Snapshot, policy: BucketPolicy, budget: MediaBudget) -> FetchedMedia:
    budget.add_visual_tokens(policy.tokens(window.choice.grid))
    evidence = policy.pixels.clip_evidence(window.frames_of_full_window)
    placeholder = window.placeholder(policy.geometry)
    return FetchedMedia("video", window.choice, placeholder, window.metadata(), window, evidence)


def _image(element: dict[str, Any], picture: Picture, policy: BucketPolicy, budget: MediaBudget) -> FetchedMedia:
    seen = picture.see()
    image = seen.image
    try:
        height, width = policy.pixels.picture_size(image.height, image.width, element)
        choice = policy.choose(policy.geometry.image_grid(height, width))
        budget.add_visual_tokens(policy.tokens(choice.grid))
        height, width = policy.geometry.pixels(choice.grid)
        if policy.pixels.resizes_bytes:
            image = resize_picture(image, height, width)
        else:
            image = _resized_image(image, height, width, policy.geometry)
    except ContractError:
        raise
    except (AssertionError, OSError, ValueError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None
    evidence = seen.decoding | policy.pixels.picture_evidence(element)
    return FetchedMedia("image", choice, image, decoding=evidence)


def _resized_image(image: Any, height: int, width: int, geometry: PatchGeometry) -> Any:
    """`fetch_image`; or its steps, for a size that its own `smart_resize` would change."""
    from qwen_vl_utils import vision_process as qwen

    try:
        kept = qwen.smart_resize(height, width, geometry.factor) == (height, width)
    except ValueError:
        kept = False
    if not kept:
        return qwen.to_rgb(image).resize((width, height))
    element = {"image": image, "resized_height": height, "resized_width": width}
    return qwen.fetch_image(element, image_patch_size=geometry.patch_size)


def _video(element: dict[str, Any], policy: BucketPolicy, budget: MediaBudget, clip_seconds: str) -> FetchedMedia:
    import torch

    path = ClipPath(clip_seconds, frame_resize(policy.pixels), pyav_alone=False)
    clip = sized_clip(element, policy.paid_by(budget), budget, path)
    pixels = torch.from_numpy(clip.frames).float()
    return FetchedMedia("video", clip.choice, pixels, clip.metadata, decoding=clip.decoding)
