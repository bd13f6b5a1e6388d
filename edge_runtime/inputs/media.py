"""Images and clips of a conversation, fetched by qwen-vl-utils at the size of their bucket.

Where the bucket is the grid that `smart_resize` gives, what comes out is what qwen-vl-utils gives for
the same message, to the bit.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.buckets import BucketChoice, choose_bucket
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.inputs.images import open_image

Message = dict[str, Any]


@dataclass(frozen=True)
class BucketPolicy:
    """Which grids the engine serves, and how much distortion is accepted before the dynamic graph.

    With `buckets` None nothing is bucketed: every picture keeps its native grid (the unsplit model). With `split`
    a clip may be made up of several runs, which `edge_runtime/encoder/batching.py` does.
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
    """What the HF processor takes, and the bucket of each item in the order of the conversation.

    Attributes:
        images: RGB PIL images at their bucket's size.
        videos: float32 tensors [frames, 3, H, W], 0 to 255.
        video_metadata: fps and frame indices of each clip, from which the timestamps are written.
        kinds: "image" or "video" per item, in prompt order.
        choices: the bucket per item, in prompt order.
        windows: a camera's window per item, in prompt order; None for what has pixels.
    """

    images: list[Any]
    videos: list[Any]
    video_metadata: list[dict[str, Any]]
    kinds: list[str]
    choices: list[BucketChoice]
    windows: list[Snapshot | None]


def fetch_media(messages: Sequence[Message], policy: BucketPolicy, defaults: dict[str, dict[str, Any]]) -> FetchedMedia:
    """Fetch every image and clip of a conversation.

    Args:
        messages: Qwen's format: `{"role", "content": [{"type": "image", "image": …}, …]}`.
        policy: the buckets to choose from.
        defaults: per kind, keys such as `min_pixels` for elements that do not set them.

    Raises:
        InputError: a picture or clip that cannot be read.
        BucketError: no bucket serves one.
    """
    from qwen_vl_utils.vision_process import extract_vision_info

    fetched = FetchedMedia([], [], [], [], [], [])
    for element in extract_vision_info(list(messages)):
        kind = "video" if "video" in element else "image"
        element = {**defaults.get(kind, {}), **element}
        window = element["video"] if kind == "video" and isinstance(element["video"], Snapshot) else None
        if kind == "image":
            image, choice = _image(element, policy)
            fetched.images.append(image)
        elif window is not None:
            choice = window.choice
            fetched.videos.append(window.placeholder(policy.geometry))
            fetched.video_metadata.append(window.metadata())
        else:
            video, metadata, choice = _video(element, policy)
            fetched.videos.append(video)
            fetched.video_metadata.append(metadata)
        fetched.kinds.append(kind)
        fetched.choices.append(choice)
        fetched.windows.append(window)
    return fetched


def _image(element: dict[str, Any], policy: BucketPolicy) -> tuple[Any, BucketChoice]:
    from qwen_vl_utils.vision_process import fetch_image

    source = element.get("image", element.get("image_url"))
    if isinstance(source, dict):  # OpenAI's form: {"image_url": {"url": …}}
        source = source.get("url")
    element = {key: value for key, value in element.items() if key != "image_url"} | {"image": open_image(source)}
    patch = policy.geometry.patch_size
    try:
        image = fetch_image(element, image_patch_size=patch)
        choice = policy.choose(policy.geometry.image_grid(image.height, image.width))
        if not choice.exact:
            # From the original again: resizing twice would blur what the model was to see.
            image = fetch_image(_resized(element, choice.grid, policy.geometry), image_patch_size=patch)
            _check_size(choice.grid, policy.geometry.image_grid(image.height, image.width))
    except ContractError:
        raise
    except (AssertionError, OSError, ValueError) as error:
        raise InputError(f"picture cannot be preprocessed ({error})", field="image") from None
    return image, choice


def _video(element: dict[str, Any], policy: BucketPolicy) -> tuple[Any, dict[str, Any], BucketChoice]:
    element = {**element, "video": _video_source(element["video"])}
    video, metadata = _fetch_video(element, policy.geometry.patch_size)
    choice = policy.choose(_video_grid(video, policy.geometry))
    if not choice.exact:
        video, metadata = _fetch_video(_resized(element, choice.grid, policy.geometry), policy.geometry.patch_size)
        _check_size(choice.grid, _video_grid(video, policy.geometry))
    return video, metadata, choice


def _video_source(source: Any) -> Any:
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("clip has no frames", field="video")
        return [open_image(frame) for frame in source]
    text = str(source)
    path = text.removeprefix("file://")
    if not text.startswith(("http://", "https://")) and not Path(path).is_file():
        raise InputError(f"no such clip: {text[:120]}", field="video")
    return path


def _fetch_video(element: dict[str, Any], patch_size: int) -> tuple[Any, dict[str, Any]]:
    from qwen_vl_utils.vision_process import fetch_video

    label = element["video"] if isinstance(element["video"], str) else f"of {len(element['video'])} frames"
    try:
        # It announces its reader on stderr at the first call, which is noise in a command's output.
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


def _check_size(wanted: Grid, got: Grid) -> None:
    if wanted != got:
        raise InputError(
            "qwen-vl-utils did not resize to the bucket",
            field="buckets",
            expected=str(wanted),
            got=str(got),
            remedy="Use buckets of at least 4 visual tokens.",
        )
