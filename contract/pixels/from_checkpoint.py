"""The pixel policy of a checkpoint, from the processors that transformers builds of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.processor_files import video_processor_config
from qwen3vl_edge.contract.errors import CheckpointError, InputError
from qwen3vl_edge.contract.pixels.policy import (
    ALL_FRAMES,
    CHECKPOINT,
    PIXEL_POLICIES,
    ClipLimits,
    PictureLimits,
    PixelPolicy,
    qwen_vl_utils_policy,
)


def read_pixel_policy(folder: Path, name: str = CHECKPOINT) -> PixelPolicy:
    """The policy of that name for a checkpoint's folder, with its numbers.

    Raises:
        InputError: no such policy.
        CheckpointError: the processors' files cannot be read, or have no limits in pixels.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor, Qwen3VLVideoProcessor

    if name not in PIXEL_POLICIES:
        raise InputError("no such pixel policy", field="--pixel-policy", expected=" or ".join(PIXEL_POLICIES), got=name)
    image = _loaded(AutoImageProcessor, folder)
    factor = int(image.patch_size) * int(image.merge_size)
    if name != CHECKPOINT:
        return qwen_vl_utils_policy(factor, int(image.temporal_patch_size))
    # A checkpoint without a video processor's settings has those of its class.
    video = _loaded(AutoVideoProcessor, folder) if _has_video_settings(folder) else Qwen3VLVideoProcessor()
    least, most = _edges(video, folder)
    # None, which old files have, is transformers' default of its version: no limit of a frame.
    frame = int(video.max_video_tokens) * factor**2 if getattr(video, "cap_pixels_per_frame", None) else None
    return PixelPolicy(
        CHECKPOINT,
        PictureLimits(*_edges(image, folder)),
        ClipLimits(ALL_FRAMES, least, most, frame_max_pixels=frame),
        factor,
        int(image.temporal_patch_size),
    )


def _loaded(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others for bad files
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the pixel limits of {folder} cannot be read ({reason})",
            field="preprocessor_config.json" if "Image" in kind.__name__ else "video_preprocessor_config.json",
            remedy="Copy the processor's files of the original checkpoint there, or take --pixel-policy qwen-vl-utils.",
        ) from None


def _has_video_settings(folder: Path) -> bool:
    """Whether transformers finds some; for want of others it takes those of the image processor."""
    try:
        return video_processor_config(folder) is not None
    except CheckpointError:
        return True  # transformers says what is wrong with it


def _edges(processor: Any, folder: Path) -> tuple[int, int]:
    size = processor.size
    least, most = size.shortest_edge, size.longest_edge
    if not least or not most:
        raise CheckpointError(
            f"a processor of {folder} has no pixel limits",
            field="size",
            expected="shortest_edge and longest_edge above 0",
            got=f"{least} and {most}",
        )
    return int(least), int(most)
