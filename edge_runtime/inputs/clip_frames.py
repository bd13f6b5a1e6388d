"""Readers of a clip's frames, tried in one order: the one that qwen-vl-utils would take, then PyAV.

qwen-vl-utils' readers choose libavformat's demuxer themselves, so they get only files that every libavformat takes for
the same kind (`ClipHeader.for_every_reader`), and under a name that means nothing. PyAV reads what they may not or
cannot: AV1, Matroska without a duration, short transport streams, GIF. Where both read a file, both give the same
frames and seconds: tests/edge_runtime/inputs/test_clip_frames.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import ClipHeader, reason_of
from qwen3vl_edge.edge_runtime.inputs.sources.containers import Kind, open_container
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget

PYAV = "pyav"
_DESCRIPTORS = Path("/proc/self/fd")
_DECORDS_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")


@dataclass(frozen=True)
class ClipFrames:
    """A clip's frames, opened by one reader.

    Attributes:
        reader: "decord", "torchcodec" or "pyav".
        total: number of frames.
        fps: average frames per second, as the container says.
        read: frames by index, uint8 tensor [frames, 3, H, W].
        seconds: when frames are shown, by index, since the first one.
    """

    reader: str
    total: int
    fps: float
    read: Callable[[list[int]], Any]
    seconds: Callable[[list[int]], list[float]]


def open_frames(path: Path, label: str, header: ClipHeader, budget: MediaBudget) -> ClipFrames:
    """The frames of a clip's file, from the first reader that gives its first frame.

    Raises:
        InputError: no reader does; has each one's reason.
        LimitError, AbandonedError: as `budget.check`.
    """
    reasons = []
    for name in _order(header):
        budget.check()
        try:
            if name == PYAV:
                frames = _pyav(path, header.kind, budget)
            else:
                with _nameless(path) as nameless:
                    frames = {"decord": _decord, "torchcodec": _torchcodec}[name](nameless)
            frames.read([0])
            return frames
        except InputError:
            raise
        except Exception as error:  # each reader raises its own kinds
            reasons.append(f"{name}: {_DECORDS_PLACE.sub('', reason_of(error))}")
    raise InputError(
        f"clip {label} cannot be read ({'; '.join(reasons)})",
        field="video",
        remedy="Check the file, or convert it to MP4 with H.264.",
    )


def _order(header: ClipHeader) -> tuple[str, ...]:
    from qwen_vl_utils import vision_process as qwen

    with contextlib.redirect_stderr(io.StringIO()):  # asked for the first time, it prints the name
        upstream = qwen.get_video_reader_backend()
    chosen = upstream in ("decord", "torchcodec")  # torchvision's decodes all of a clip at once, and left torchvision
    return (upstream, PYAV) if chosen and header.for_every_reader and _DESCRIPTORS.is_dir() else (PYAV,)


@contextlib.contextmanager
def _nameless(path: Path) -> Iterator[str]:
    """A name of the file that is no protocol's, no pattern of names and of no suffix, for as long as the block runs."""
    with path.open("rb") as file:
        yield str(_DESCRIPTORS / str(file.fileno()))


def _decord(name: str) -> ClipFrames:
    import decord
    import torch

    reader = decord.VideoReader(name)

    fps = reader.get_avg_fps()

    def seconds(indices: list[int]) -> list[float]:
        starts = reader.get_frame_timestamp([0, *indices])[:, 0].tolist()
        if all(index == 0 or start > starts[0] for index, start in zip(indices, starts[1:], strict=True)):
            return [start - starts[0] for start in starts[1:]]
        return [index / fps for index in indices]  # of AVI, whose rate is constant, it says 0 for all

    return ClipFrames(
        "decord",
        len(reader),
        fps,
        lambda indices: torch.tensor(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2),
        seconds,
    )


def _torchcodec(name: str) -> ClipFrames:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(name, num_ffmpeg_threads=int(os.environ.get("TORCHCODEC_NUM_THREADS", "8")))

    def seconds(indices: list[int]) -> list[float]:
        starts = [decoder.get_frame_at(index).pts_seconds for index in [0, *indices]]
        return [start - starts[0] for start in starts[1:]]

    return ClipFrames(
        "torchcodec",
        decoder.metadata.num_frames,
        decoder.metadata.average_fps,
        lambda indices: decoder.get_frames_at(indices=indices).data,
        seconds,
    )


def _pyav(path: Path, kind: Kind, budget: MediaBudget) -> ClipFrames:
    import torch

    most = budget.limits.most_pixels(path.stat().st_size)
    with open_container(path, kind, most) as container:
        stream = container.streams.best("video")
        base = float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate
        times = _packet_times(container, stream)
    if not times:
        raise ValueError("no frames in it")
    if not rate and len(times) > 1 and times[-1] > times[0]:
        rate = (len(times) - 1) / (times[-1] - times[0]) / base
    decoder = _Decoder(path, kind, most)

    def read(indices: list[int]) -> Any:
        frames = []
        for index in indices:
            budget.check()
            frames.append(decoder.shown_at(times[index]))
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)

    return ClipFrames(
        PYAV,
        len(times),
        float(rate or 1),  # of a single frame it does not matter
        read,
        lambda indices: [(times[index] - times[0]) * base for index in indices],
    )


def _packet_times(container: Any, stream: Any) -> list[int]:
    """When each frame is shown, in the stream's ticks and in order, without decoding any."""
    times = []
    for packet in container.demux(stream):
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.size and time is not None and not packet.is_discard:
            times.append(time)
    return sorted(times)


class _Decoder:
    """Decodes a stream forward, and from its start again where an earlier frame is asked for."""

    def __init__(self, path: Path, kind: Kind, most_pixels: int) -> None:
        self._open = lambda: _decoded(path, kind, most_pixels)
        self._frames = self._open()
        self._shown: Any = None
        self._next: Any = None

    def shown_at(self, time: int) -> Any:
        """Pixels, uint8 [H, W, 3], of the frame that is shown at a time."""
        if self._shown is not None and _time(self._shown) > time:
            self._frames.close()
            self._frames, self._shown, self._next = self._open(), None, None
        if self._shown is None:
            self._shown = next(self._frames, None)
            self._next = next(self._frames, None)
        if self._shown is None:
            raise ValueError("no frame can be decoded")
        while self._next is not None and _time(self._next) <= time:
            self._shown, self._next = self._next, next(self._frames, None)
        return self._shown.to_ndarray(format="rgb24")


def _time(frame: Any) -> int:
    return int(frame.pts if frame.pts is not None else frame.dts or 0)


def _decoded(path: Path, kind: Kind, most_pixels: int) -> Generator[Any, None, None]:
    import av

    with open_container(path, kind, most_pixels) as container:
        stream = container.streams.best("video")
        stream.thread_type = "AUTO"
        size: tuple[int, int] | None = None
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:  # as every player does, go on after a damaged frame
                continue
            for frame in frames:
                size = size or (frame.width, frame.height)
                yield frame if (frame.width, frame.height) == size else frame.reformat(*size)
