"""A clip's sampled frames at the model's size, bit-identical to qwen-vl-utils' `fetch_video` of the same file.

Its size is the pixel policy's; with qwen-vl-utils' policy it is `fetch_video`'s too.

qwen-vl-utils decodes all sampled frames at their full size and resizes them together, in 20 bytes a pixel: a minute in
1080p takes 5 GB. Here some frames at a time are decoded and resized, by the same libraries and functions, at sizes that
are known and limited before. Formulas: `fetch_video` of qwen-vl-utils 0.0.14 (`vision_process.py`).
tests/edge_runtime/inputs/test_clip_reader.py compares both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.edge_runtime.inputs.clip_frames import open_frames
from qwen3vl_edge.edge_runtime.inputs.sources.access import MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import check_clip, check_frame_size, reading
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.torch_resize import resize_frames

_PIXELS_AT_ONCE = 4_000_000
_UNEVEN_SECONDS = 0.05  # prompts have tenths
# Which seconds the prompt gives for a clip's frames.
CLIP_SECONDS = {
    "average": "a frame's number divided by the clip's average rate, as upstream computes them",
    "shown": "when the frame is shown, which differs where the rate is variable",
}


@dataclass(frozen=True)
class Clip:
    """An open clip, and which of its frames are sampled.

    Attributes:
        metadata: as qwen-vl-utils returns it.
        height, width: of its frames.
        seconds: when each sampled frame is shown, since the clip's first frame.
    """

    label: str
    metadata: dict[str, Any]
    height: int
    width: int
    read: Callable[[list[int]], Any]
    seconds: tuple[float, ...]

    @property
    def indices(self) -> list[int]:
        found: list[int] = self.metadata["frames_indices"]
        return found

    @property
    def seconds_off(self) -> float:
        """The most by which upstream's seconds, index by average rate, are off a sampled frame's own."""
        fps = float(self.metadata["fps"])
        average = (index / fps for index in self.indices)
        return max(abs(mean - own) for mean, own in zip(average, self.seconds, strict=True))

    def metadata_with(self, seconds: str) -> dict[str, Any]:
        """The processor's input for timestamps: a frame's index divided by `fps` becomes its second.

        Args:
            seconds: a key of `CLIP_SECONDS`.
        """
        if seconds == "average":
            return self.metadata
        return {**self.metadata, "frames_indices": [second * self.metadata["fps"] for second in self.seconds]}

    def decoding(self, seconds: str) -> dict[str, str]:
        """Evidence: the reader, and whose seconds the prompt has where the frames are not evenly spaced."""
        found = {"reader": str(self.metadata["video_backend"])}
        if self.seconds_off >= _UNEVEN_SECONDS:
            found["seconds"] = f"average, up to {self.seconds_off:.2f} off" if seconds == "average" else seconds
        return found

    def one_frame(self) -> Image.Image:
        """The frame of a clip that has one: such a file is prepared as a list of that picture."""
        with reading(self.label):
            return Image.fromarray(self.read([0])[0].permute(1, 2, 0).numpy())

    def model_size(self, element: dict[str, Any], pixels: PixelPolicy) -> tuple[int, int]:
        """Height and width that the frames are resized to.

        Raises:
            InputError: sides too unequal.
        """
        return clip_size(pixels, len(self.indices), self.height, self.width, element)

    def frames(self, height: int, width: int, pixels: PixelPolicy, budget: MediaBudget) -> Any:
        """The sampled frames, float32 tensor [frames, 3, height, width] of 0 to 255.

        Raises:
            InputError: one cannot be decoded.
            LimitError, AbandonedError: as `MediaBudget.check`.
        """
        import torch

        at_once = max(1, _PIXELS_AT_ONCE // (self.height * self.width))
        indices, parts = self.indices, []
        for start in range(0, len(indices), at_once):
            budget.check()
            with reading(self.label):
                frames = self.read(indices[start : start + at_once])
            parts.append(resize_frames(frames, height, width, pixels))
        return torch.cat(parts)


def open_clip_file(path: Path, element: dict[str, Any], budget: MediaBudget, label: str | None = None) -> Clip:
    """Open a clip's file and choose its frames; one frame is decoded.

    Args:
        element: of the message, with `fps`, `nframes`, `video_start` and such.
        budget: pays for the sampled frames.
        label: names it in errors; its path by default.

    Raises:
        InputError: not a clip, or one without enough frames.
        LimitError: its frames are too large or too many.
    """
    from qwen_vl_utils import vision_process as qwen

    label = label or MediaSource("video", str(path), "video").label
    header = check_clip(path, label, budget.limits)
    opened = open_frames(path, label, header, budget)
    with reading(label):
        if opened.total == 1:
            start, end, count, number = 0, 0, 1, 1
        else:
            start, end, count = qwen.calculate_video_frame_range(element, opened.total, opened.fps)
            number = qwen.smart_nframes(element, total_frames=count, video_fps=opened.fps)
        first = opened.read([start])
        height, width = int(first.shape[2]), int(first.shape[3])
    check_frame_size(label, height, width, budget.limits)
    budget.add_clip_pixels(number * height * width, f"{number} frames of {width}x{height}")
    indices = _spread(start, end, number)
    with reading(label):
        seconds = opened.seconds(indices)
    metadata = {
        "fps": opened.fps,
        "frames_indices": indices,
        "total_num_frames": count,
        "video_backend": opened.reader,
    }
    return Clip(label, metadata, height, width, opened.read, tuple(seconds))


def _spread(start: int, end: int, number: int) -> list[int]:
    import torch

    indices: list[int] = torch.linspace(start, end, number).round().long().tolist()
    return indices


def clip_size(pixels: PixelPolicy, frames: int, height: int, width: int, element: dict[str, Any]) -> tuple[int, int]:
    """Height and width that so many frames of this size are resized to.

    Raises:
        InputError: sides too unequal, or limits without a size between them.
    """
    try:
        return pixels.clip_size(frames, height, width, element)
    except ContractError:
        raise
    except ValueError as error:
        raise InputError(f"clip cannot be preprocessed ({error})", field="video") from None
