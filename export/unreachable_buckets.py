"""Buckets of a size that the pixel policy gives no picture or clip."""

from __future__ import annotations

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Manifest
from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, EACH_FRAME, PixelPolicy


def unreachable_buckets(manifest: Manifest) -> list[str]:
    """A line for each bucket outside of the limits, which names both.

    A picture of a bucket's own size that is resized to another shows that no picture becomes of that size: what the
    policy gives lies between its limits, and it leaves such a size as it is. Other sizes near to it may still be
    stretched to the bucket, and a request may have limits of its own.
    """
    policy = manifest.pixels
    if policy is None:
        return []
    grids = [grid for item in manifest.precisions for grid in manifest.buckets(item.precision)]
    lines = (_line(policy, manifest, grid) for grid in dict.fromkeys(grids))
    return [line for line in lines if line is not None]


def _line(policy: PixelPolicy, manifest: Manifest, grid: Grid) -> str | None:
    geometry = manifest.vision.geometry
    height, width = geometry.pixels(grid)
    frames = geometry.frames(grid)
    clip = grid.t > 1
    name = f"{frames}x{height}x{width}" if clip else f"{height}x{width}"
    try:
        given = policy.clip_size(frames, height, width) if clip else policy.picture_size(height, width)
    except ValueError as error:  # sides more unequal than either upstream takes
        return f"bucket {name} is reached by none: {error}"
    if given == (height, width):
        return None
    evidence = policy.clip_evidence(frames) if clip else policy.picture_evidence()
    side, edge = ("least", "shortest_edge") if given[0] * given[1] > height * width else ("most", "longest_edge")
    if policy.name == CHECKPOINT:
        file = "video_preprocessor_config.json" if clip else "preprocessor_config.json"
        cap = " or max_video_tokens" if clip and edge == "longest_edge" and policy.video.frame_max_pixels else ""
        source = f"size.{edge}{cap} of {file}"
    else:
        source = "qwen-vl-utils' default"
    per_frame = clip and policy.video.bounds == EACH_FRAME
    pixels = height * width if per_frame or not clip else frames * height * width
    return (
        f"bucket {name} has {pixels} pixels{' a frame' if per_frame else ''}, and the pixel policy {policy.name} gives "
        f"{'clips' if clip else 'pictures'} {evidence['pixel_limits']} ({side}: {source}): none is resized to this "
        f"bucket's size, but to {given[0]}x{given[1]}"
    )
