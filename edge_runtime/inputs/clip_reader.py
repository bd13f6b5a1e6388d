"""A clip's sampled frames at the model's size, bit-identical to qwen-vl-utils' `fetch_video` of the same file.

qwen-vl-utils decodes all sampled frames at their full size and resizes them together, in 20 bytes a pixel: a minute in
1080p takes 5 GB. Here some frames at a time are decoded and resized, by the same libraries and functions, at sizes that
are known and limited before. Formulas: `fetch_video` of qwen-vl-utils 0.0.14 (`vision_process.py`).
tests/edge_runtime/test_clip_reader.py compares both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.sources.access import MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import check_clip, check_frame_size, reading
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget

_PIXELS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Clip:
    """An open clip, and which of its frames are sampled.

    Attributes:
        metadata: as qwen-vl-utils returns it.
        height, width: of its frames.
    """

    label: str
    metadata: dict[str, Any]
    height: int
    width: int
    read: Callable[[list[int]], Any]

    @property
    def indices(self) -> list[int]:
        found: list[int] = self.metadata["frames_indices"]
        return found

    def model_size(self, element: dict[str, Any], patch_size: int) -> tuple[int, int]:
        """Height and width that the frames are resized to.

        Raises:
            InputError: sides too unequal.
        """
        from qwen_vl_utils import vision_process as qwen

        factor = patch_size * qwen.SPATIAL_MERGE_SIZE
        if "resized_height" in element and "resized_width" in element:
            return _sides(qwen.smart_resize, element["resized_height"], element["resized_width"], factor)
        lowest = element.get("min_pixels", qwen.VIDEO_MIN_TOKEN_NUM * factor * factor)
        total = element.get("total_pixels", qwen.MODEL_SEQ_LEN * factor * factor * 0.9)
        most_per_frame = min(qwen.VIDEO_MAX_TOKEN_NUM * factor * factor, total / len(self.indices) * qwen.FRAME_FACTOR)
        highest = max(most_per_frame, int(lowest * 1.05))
        highest = min(element.get("max_pixels", highest), highest)
        return _sides(qwen.smart_resize, self.height, self.width, factor, lowest, highest)

    def frames(self, height: int, width: int, budget: MediaBudget) -> Any:
        """The sampled frames, float32 tensor [frames, 3, height, width] of 0 to 255.

        Raises:
            InputError: one cannot be decoded.
            LimitError, AbandonedError: as `MediaBudget.check`.
        """
        import torch
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import resize

        at_once = max(1, _PIXELS_AT_ONCE // (self.height * self.width))
        indices, parts = self.indices, []
        for start in range(0, len(indices), at_once):
            budget.check()
            with reading(self.label):
                frames = self.read(indices[start : start + at_once])
            parts.append(resize(frames, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True))
        return torch.cat(parts).float()


def open_clip_file(path: Path, element: dict[str, Any], budget: MediaBudget) -> Clip:
    """Open a clip's file and choose its frames; one frame is decoded.

    Args:
        element: of the message, with `fps`, `nframes`, `video_start` and such.
        budget: pays for the sampled frames.

    Raises:
        InputError: not a clip, or one without enough frames.
        LimitError: its frames are too large or too many.
    """
    from qwen_vl_utils import vision_process as qwen

    label = MediaSource("video", str(path), "video").label
    check_clip(path, label, budget.limits)
    with reading(label):
        backend, total, fps, read = _reader(path)
        start, end, count = qwen.calculate_video_frame_range(element, total, fps)
        number = qwen.smart_nframes(element, total_frames=count, video_fps=fps)
        first = read([start])
        height, width = int(first.shape[2]), int(first.shape[3])
    check_frame_size(label, height, width, budget.limits)
    budget.add_clip_pixels(number * height * width, f"{number} frames of {width}x{height}")
    metadata = {
        "fps": fps,
        "frames_indices": _spread(start, end, number),
        "total_num_frames": count,
        "video_backend": backend,
    }
    return Clip(label, metadata, height, width, read)


def _reader(path: Path) -> tuple[str, int, float, Callable[[list[int]], Any]]:
    """Name, number of frames, frames per second, and a function that decodes frames into uint8 [frames, 3, H, W].

    The reader that qwen-vl-utils would take, with its settings.
    """
    import torch
    from qwen_vl_utils import vision_process as qwen

    name = qwen.get_video_reader_backend()
    if name == "decord":
        import decord

        reader = decord.VideoReader(str(path))
        return (
            name,
            len(reader),
            reader.get_avg_fps(),
            lambda indices: torch.tensor(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2),
        )
    if name == "torchcodec":
        from torchcodec.decoders import VideoDecoder

        threads = int(os.environ.get("TORCHCODEC_NUM_THREADS", "8"))
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=threads)
        return (
            name,
            decoder.metadata.num_frames,
            decoder.metadata.average_fps,
            lambda indices: decoder.get_frames_at(indices=indices).data,
        )
    raise InputError(
        f"clips cannot be read with {name}, which decodes all of a clip at once",
        field="video",
        remedy="Install decord or torchcodec.",
    )


def _spread(start: int, end: int, number: int) -> list[int]:
    import torch

    indices: list[int] = torch.linspace(start, end, number).round().long().tolist()
    return indices


def _sides(smart_resize: Callable[..., tuple[int, int]], *arguments: Any) -> tuple[int, int]:
    try:
        return smart_resize(*arguments)
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"clip cannot be preprocessed ({error})", field="video") from None
