"""Which frames of a clip the model sees: qwen-vl-utils' arithmetic, without torch, under every pixel policy.

`calculate_video_frame_range`, `smart_nframes` and the metadata of `fetch_video` of qwen-vl-utils 0.0.14
(`vision_process.py`). tests/edge_runtime/inputs/test_clip_sampling.py compares them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FRAME_FACTOR = 2  # frames are taken in pairs
FPS = 2.0
MIN_FRAMES, MAX_FRAMES = 4, 768


def frame_range(element: dict[str, Any], total: int, fps: float) -> tuple[int, int]:
    """The first and the last frame between `video_start` and `video_end`, which are seconds.

    Raises:
        ValueError: a clip without a rate, or no two frames between them.
    """
    if fps <= 0:
        raise ValueError(f"its rate is {fps:g} frames a second")
    seconds = total / fps
    start, end = 0, total - 1
    if (from_second := element.get("video_start")) is not None:
        start = math.ceil(max(0.0, min(from_second, seconds)) * fps)
    if (to_second := element.get("video_end")) is not None:
        end = min(math.floor(max(0.0, min(to_second, seconds)) * fps), total - 1)
    if start >= end and {"video_start", "video_end"} & {name for name, value in element.items() if value is not None}:
        raise ValueError(f"no two frames between video_start and video_end: it has {total} frames in {seconds:.2f} s")
    return start, end


def frame_count(element: dict[str, Any], total: int, fps: float) -> int:
    """How many of `total` frames are sampled: `nframes`, or `fps` between `min_frames` and `max_frames`.

    Raises:
        ValueError: both `fps` and `nframes`, or fewer frames than two, or more than there are.
    """
    if "fps" in element and "nframes" in element:
        raise ValueError("only one of fps and nframes may be given")
    number: int
    if "nframes" in element:
        number = round(element["nframes"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        least = math.ceil(element.get("min_frames", MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
        most = element.get("max_frames", min(MAX_FRAMES, total))
        wanted = total / fps * element.get("fps", FPS)
        bounded = min(max(wanted, least), math.floor(most / FRAME_FACTOR) * FRAME_FACTOR, total)
        number = math.floor(bounded / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= number <= total:
        raise ValueError(f"the number of sampled frames must be from {FRAME_FACTOR} to {total}, got {number}")
    return number


def spread(start: int, end: int, number: int) -> list[int]:
    """Frames at even distances: `torch.linspace(start, end, number).round()`.

    In float32, from both ends to the middle, each product added in one rounding as torch's kernel does on every
    processor with fused multiply-add (`aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp`).
    """
    if number == 1:
        return [start]
    step = float((np.float32(end) - np.float32(start)) / np.float32(number - 1))
    index = np.arange(number, dtype=np.float64)
    places = np.where(index < number // 2, start + step * index, end - step * (number - 1 - index))
    indices: list[int] = np.rint(places.astype(np.float32)).astype(np.int64).tolist()
    return indices


def stored_frames(element: dict[str, Any], number: int, together: int = FRAME_FACTOR) -> tuple[int, dict[str, Any]]:
    """How many frames a list of `number` pictures becomes, and its metadata.

    Args:
        together: frames of a temporal patch, which the last picture fills.
    """
    count = number + -number % together
    rate = float(element.get("sample_fps", FPS))
    raw = float(element.get("raw_fps", rate))
    return count, {"fps": raw, "frames_indices": list(range(count)), "total_num_frames": count / rate * raw}
