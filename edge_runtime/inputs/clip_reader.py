"""A clip's sampled frames at the model's size.

The frames are those that qwen-vl-utils' `fetch_video` samples of the same file; the size and how they are resized are
the pixel policy's. With qwen-vl-utils' policy the result is `fetch_video`'s to the bit.

qwen-vl-utils decodes all sampled frames at their full size and resizes them together, in 20 bytes a pixel: a minute in
1080p takes 5 GB. Here some frames at a time are decoded and resized, at sizes that are known and limited before.
tests/edge_runtime/inputs/test_clip_reader.py compares both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.edge_runtime.inputs.clip_frames import PYAV, ReaderError, open_frames, reader_order
from qwen3vl_edge.edge_runtime.inputs.clip_sampling import frame_count, frame_range, spread
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import ClipHeader, check_clip, check_frame_size
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget

# uint8 [F, H, W, 3], height and width to uint8 [F, 3, height, width].
Resize = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]
Used = TypeVar("Used")
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
    read: Callable[[list[int]], NDArray[np.uint8]]
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
        return Image.fromarray(self.read([0])[0])

    def model_size(self, element: dict[str, Any], pixels: PixelPolicy) -> tuple[int, int]:
        """Height and width that the frames are resized to.

        Raises:
            InputError: sides too unequal.
        """
        return clip_size(pixels, len(self.indices), self.height, self.width, element)

    def frames(self, height: int, width: int, budget: MediaBudget, resize: Resize) -> NDArray[np.uint8]:
        """The sampled frames, uint8 [frames, 3, height, width].

        Raises:
            ReaderError: one cannot be decoded.
            LimitError, AbandonedError: as `MediaBudget.check`.
        """
        at_once = max(1, _PIXELS_AT_ONCE // (self.height * self.width))
        indices, parts = self.indices, []
        for start in range(0, len(indices), at_once):
            budget.check()
            parts.append(resize(self.read(indices[start : start + at_once]), height, width))
        return np.concatenate(parts)


def read_clip(
    file: ClipFile,
    element: dict[str, Any],
    budget: MediaBudget,
    use: Callable[[Clip], Used],
    *,
    pyav_alone: bool = False,
) -> Used:
    """Open a clip's file, choose its frames, and use them; where a reader fails, at once or midway, the next one does.

    Args:
        element: of the message, with `fps`, `nframes`, `video_start` and such.
        budget: pays for the sampled frames.
        use: what is done with the clip; called again with the next reader's where it raises `ReaderError`.
        pyav_alone: no other reader is tried, nor qwen-vl-utils asked for one.

    Raises:
        InputError: not a clip, or one without enough frames, or no reader reads it; has each one's reason.
        LimitError: its frames are too large or too many.
        AbandonedError: as `MediaBudget.check`.
    """
    header = check_clip(file.path, file.label, budget.limits)
    reasons = []
    for reader in (PYAV,) if pyav_alone else reader_order(header):
        spent = budget.spent
        try:
            used = use(_sampled(file, element, header, budget, reader))
        except ReaderError as error:
            reasons.append(str(error))
            budget.retry_from(spent)
        else:
            budget.retry_from(budget.spent)
            return used
    raise InputError(
        f"clip {file.label} cannot be read ({'; '.join(reasons)})",
        field="video",
        remedy="Check the file, or convert it to MP4 with H.264.",
    )


def _sampled(file: ClipFile, element: dict[str, Any], header: ClipHeader, budget: MediaBudget, reader: str) -> Clip:
    opened = open_frames(file.path, header, budget, reader)
    start, end, number = 0, 0, 1
    if opened.total > 1:
        try:
            start, end = frame_range(element, opened.total, opened.fps)
            number = frame_count(element, end - start + 1, opened.fps)
        except ValueError as error:
            raise InputError(f"clip {file.label} cannot be sampled ({error})", field="video") from None
    height, width = opened.read([start]).shape[1:3]
    check_frame_size(file.label, height, width, budget.limits)
    budget.add_clip_pixels(number * height * width, f"{number} frames of {width}x{height}")
    indices = spread(start, end, number)
    metadata = {
        "fps": opened.fps,
        "frames_indices": indices,
        "total_num_frames": end - start + 1,
        "video_backend": opened.reader,
    }
    return Clip(file.label, metadata, height, width, opened.read, tuple(map(opened.seconds, indices)))


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
