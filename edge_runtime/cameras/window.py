"""The last seconds of a live stream as temporal patches, each encoded at most once.

The encoder's attention does not cross temporal patches and its positions depend on h and w alone. So the embeddings
of a window are those of its temporal patches in order, and after a window has moved by one temporal patch, one is to be
encoded.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.edge_runtime.encoder.batching import concatenate
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings

FRAMES = 2  # of a temporal patch, in every released checkpoint; `edge_runtime/cameras/camera.py` checks it
Encode = Callable[[Sequence[EncoderInput]], list[Embeddings]]
Patchify = Callable[[NDArray[np.uint8]], EncoderInput]


class TemporalPatch:
    """Two frames; once encoded, their embeddings instead.

    Attributes:
        times: seconds of the two frames, on the clock of the source.
        frames: uint8 [2, 3, H, W] at the size that is encoded, None once they are encoded.
    """

    def __init__(self, times: tuple[float, float], frames: NDArray[np.uint8]) -> None:
        self.times = times
        self.frames: NDArray[np.uint8] | None = frames
        self.embeddings: Embeddings | None = None


@dataclass(frozen=True)
class Snapshot:
    """The temporal patches of a window at one moment, as one clip.

    Attributes:
        camera: its name.
        patches: the oldest first.
        choice: as of a clip; `choice.grid.t` is the number of patches.
    """

    camera: str
    patches: tuple[TemporalPatch, ...]
    choice: BucketChoice
    window: Window

    @property
    def encoded(self) -> int:
        """Number of patches that are encoded already."""
        return sum(patch.embeddings is not None for patch in self.patches)

    @property
    def frames_of_full_window(self) -> int:
        """By which its size in pixels was chosen."""
        return self.window.capacity * FRAMES

    def embeddings(self, encode: Encode) -> Embeddings:
        """Embeddings of the whole clip; missing patches are encoded now, in one call, and stored in the window.

        Raises:
            ContractError: as `encode`.
        """
        return concatenate(self.window.encode(self.patches, encode))

    def metadata(self) -> dict[str, Any]:
        """The input of Qwen's processor for timestamps: each frame's position in the clip, to the millisecond.

        The processor divides a frame's index by `fps` and takes the mean of a temporal patch's first and last frame.
        A camera's frames do not have even distances, so an index here is a millisecond since the first frame.
        """
        start = self.patches[0].times[0]
        indices = [round((seconds - start) * 1000) for patch in self.patches for seconds in patch.times]
        return {"fps": 1000.0, "frames_indices": indices, "total_num_frames": indices[-1] + 1}

    def placeholder(self, geometry: PatchGeometry) -> Any:
        """Float32 zeros for the processor: as many frames, one visual token per temporal patch."""
        import torch

        return torch.zeros(len(self.patches) * FRAMES, 3, geometry.factor, geometry.factor)


class Window:
    """Temporal patches of the last `seconds`; never more than `capacity`.

    Args:
        camera: its name.
        seconds: length of the window.
        fps: average rate of the frames.
        patchify: two frames, uint8 [2, 3, H, W], to the encoder's input.

    Attributes:
        capacity: temporal patches of `seconds` at `fps`.
        encoded: patches encoded so far.
        unencoded: patches that left the window without being encoded.
        unpaired: frames whose second frame did not come in time.
        error: of the last encode; empty after one that succeeds.
    """

    def __init__(self, camera: str, seconds: float, fps: float, patchify: Patchify) -> None:
        self.camera = camera
        self.seconds = seconds
        self.interval = 1 / fps
        self.capacity = patches_of(seconds, fps)
        self.encoded = self.unencoded = self.unpaired = 0
        self.error = ""
        self._patchify = patchify
        self._patches: deque[TemporalPatch] = deque()
        self._first: tuple[float, NDArray[np.uint8]] | None = None
        self._last: float | None = None
        self._gaps = deque([self.interval] * 2, maxlen=2)
        self._lock = threading.Lock()
        self._encoding = threading.Lock()

    def __len__(self) -> int:
        return len(self._patches)

    def add(self, seconds: float, frame: NDArray[np.uint8]) -> bool:
        """Add a sampled frame, uint8 [3, H, W]; True if it completed a temporal patch."""
        with self._lock:
            # A source may be slower than `fps`: its last two gaps determine the largest gap within a patch.
            apart = 2 * max(self.interval, min(self._gaps))
            if self._last is not None:
                self._gaps.append(seconds - self._last)
            self._last = seconds
            if self._first is not None and seconds - self._first[0] > apart:
                # The source was lost: frames this far apart are not a temporal patch of a clip at this rate.
                self.unpaired += 1
                self._first = None
            if self._first is None:
                self._first = (seconds, frame)
                return False
            times, frames = (self._first[0], seconds), np.stack([self._first[1], frame])
            self._first = None
            self._patches.append(TemporalPatch(times, frames))
            self._slide(seconds)
            return True

    def clear(self) -> None:
        """Drop all frames and patches, for a source whose size has changed."""
        with self._lock:
            self._patches.clear()
            self._first = None

    def snapshot(self, now: float, choice: BucketChoice, seconds: float | None = None) -> Snapshot | None:
        """The last `seconds`, the whole window by default; None without a patch that recent.

        Args:
            choice: of one temporal patch.
        """
        limit = self.capacity if seconds is None else min(self.capacity, patches_of(seconds, 1 / self.interval))
        with self._lock:
            self._slide(now)
            patches = tuple(self._patches)[-limit:]
        if seconds is not None:  # fewer patches where the source is slow, but never none
            patches = tuple(p for p in patches[:-1] if p.times[0] > patches[-1].times[1] - seconds) + patches[-1:]
        if not patches:
            return None
        native, grid = (Grid(len(patches), of.h, of.w) for of in (choice.native, choice.grid))
        return Snapshot(
            self.camera, patches, BucketChoice(native, grid, choice.fixed, choice.scale, choice.distortion), self
        )

    def newest_missing(self) -> TemporalPatch | None:
        """The newest patch that is not encoded: it stays in the window the longest."""
        with self._lock:
            return next((patch for patch in reversed(self._patches) if patch.embeddings is None), None)

    def encode(self, patches: Sequence[TemporalPatch], encode: Encode) -> list[Embeddings]:
        """Embeddings of each patch; encodes the missing ones. Two threads never encode the same patch.

        Raises:
            ContractError: as `encode`.
        """
        with self._encoding:
            missing = [(patch, patch.frames) for patch in patches if patch.frames is not None]
            if missing:
                try:
                    results = encode([self._patchify(frames) for _, frames in missing])
                except Exception as error:
                    self.error = str(error) if isinstance(error, ContractError) else type(error).__name__
                    raise
                for (patch, _), embeddings in zip(missing, results, strict=True):
                    patch.embeddings, patch.frames = embeddings, None
                self.encoded += len(missing)
                self.error = ""
            return [patch.embeddings for patch in patches if patch.embeddings is not None]

    def _slide(self, now: float) -> None:
        """Drop patches above the capacity, and those that are too old where the source stood still."""
        oldest = now - self.seconds - FRAMES * self.interval
        while self._patches and (len(self._patches) > self.capacity or self._patches[0].times[0] < oldest):
            self.unencoded += self._patches.popleft().embeddings is None


def patches_of(seconds: float, fps: float) -> int:
    """Temporal patches of a clip of `seconds` at `fps` frames a second; at least one."""
    return max(1, math.ceil(round(seconds * fps / FRAMES, 6)))
