"""Readers of a clip's frames, tried in one order: the one that qwen-vl-utils would take, then PyAV; or PyAV alone.

qwen-vl-utils' readers choose libavformat's demuxer themselves, so they get only files that every libavformat takes for
the same kind (`ClipHeader.for_every_reader`), and under a name that means nothing. PyAV reads what they may not or
cannot: AV1, Matroska without a duration, transport streams, GIF. Where both read a file, both give the same frames:
tests/edge_runtime/inputs/test_clip_frames.py. When frames are shown is the container's word for every reader.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import ContractError, LimitError
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import ClipHeader, reason_of
from qwen3vl_edge.edge_runtime.inputs.sources.containers import Kind, open_container
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget

PYAV = "pyav"
MOST_FRAMES = 1_000_000  # nine hours at 30 frames a second
_PACKETS_BETWEEN_CHECKS = 4096
_DESCRIPTORS = Path("/proc/self/fd")
_DECORDS_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")


@dataclass(frozen=True)
class ClipFrames:
    """A clip's frames, opened by one reader.

    Attributes:
        reader: "decord", "torchcodec" or "pyav".
        total: number of frames.
        fps: average frames per second, as the container says.
        read: frames by index, uint8 [frames, H, W, 3].
        seconds: when a frame is shown, by index, since the first one.
    """

    reader: str
    total: int
    fps: float
    read: Callable[[list[int]], NDArray[np.uint8]]
    seconds: Callable[[int], float]


class ReaderError(Exception):
    """A reader cannot open a clip, or cannot go on; another one may."""


def reader_order(header: ClipHeader) -> tuple[str, ...]:
    """The readers that qwen-vl-utils and this machine have for a clip's file, in the order in which they are tried."""
    from qwen_vl_utils import vision_process as qwen

    with contextlib.redirect_stderr(io.StringIO()):  # asked for the first time, it prints the name
        upstream = qwen.get_video_reader_backend()
    chosen = upstream in ("decord", "torchcodec")  # torchvision's decodes all of a clip at once, and left torchvision
    return (upstream, PYAV) if chosen and header.for_every_reader and _DESCRIPTORS.is_dir() else (PYAV,)


def open_frames(path: Path, header: ClipHeader, budget: MediaBudget, reader: str) -> ClipFrames:
    """The frames of a clip's file as one reader has them; the first is decoded.

    Raises:
        ReaderError: it cannot, now or later in `read`.
        LimitError, AbandonedError: as `budget.check`.
    """
    budget.check()
    with _fails_as(reader):
        timeline = _timeline(path, header.kind, budget)
        if reader == PYAV:
            frames = _pyav(path, header.kind, budget, timeline)
        else:
            with _nameless(path) as nameless:
                frames = {"decord": _decord, "torchcodec": _torchcodec}[reader](nameless, timeline)
        frames.read([0])

    def read(indices: list[int]) -> NDArray[np.uint8]:
        with _fails_as(reader):
            return frames.read(indices)

    return replace(frames, read=read)


@contextlib.contextmanager
def _fails_as(reader: str) -> Iterator[None]:
    try:
        yield
    except ContractError:
        raise
    except Exception as error:  # each reader raises its own kinds
        raise ReaderError(f"{reader}: {_DECORDS_PLACE.sub('', reason_of(error))}") from None


@contextlib.contextmanager
def _nameless(path: Path) -> Iterator[str]:
    """A name of the file that is no protocol's, no pattern of names and of no suffix, for as long as the block runs."""
    with path.open("rb") as file:
        yield str(_DESCRIPTORS / str(file.fileno()))


@dataclass(frozen=True)
class _Timeline:
    """What a container says of its frames.

    Attributes:
        ticks: when each is shown, in order.
        tick: seconds.
        rate: average frames per second, None where it does not say.
        in_order: it does not say which frame is shown when: frames are numbered as they are decoded.
    """

    ticks: list[int]
    tick: float
    rate: float | None
    in_order: bool

    def seconds(self, index: int) -> float:
        """Since the first frame; of a frame that it does not know, by the rate."""
        if index < len(self.ticks):
            return (self.ticks[index] - self.ticks[0]) * self.tick
        return index / (self.rate or 1)


def _check_count(frames: int, budget: MediaBudget) -> None:
    budget.check()
    if frames > MOST_FRAMES:
        raise LimitError(
            "clip has too many frames",
            field="video",
            expected=f"at most {MOST_FRAMES}",
            got="more",
            remedy="Send a part of it.",
        )


def _timeline(path: Path, kind: Kind, budget: MediaBudget) -> _Timeline:
    """Read without decoding any frame."""
    ticks: list[int] = []
    in_order = not kind.timed
    with open_container(path, kind, budget.limits.most_pixels(path.stat().st_size)) as container:
        stream = container.streams.best("video")
        tick, rate = float(stream.time_base), stream.average_rate or stream.guessed_rate
        for packet in container.demux(stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if packet.size and time is not None and not packet.is_discard:
                if len(ticks) % _PACKETS_BETWEEN_CHECKS == 0:
                    _check_count(len(ticks), budget)
                ticks.append(time)
                in_order = in_order or packet.pts is None
    ticks.sort()
    if not rate and len(ticks) > 1 and ticks[-1] > ticks[0]:
        rate = (len(ticks) - 1) / (ticks[-1] - ticks[0]) / tick
    return _Timeline(ticks, tick, float(rate) if rate else None, in_order)


def _decord(name: str, timeline: _Timeline) -> ClipFrames:
    import decord

    reader = decord.VideoReader(name)

    def read(indices: list[int]) -> NDArray[np.uint8]:
        return np.asarray(reader.get_batch(indices).asnumpy())

    return ClipFrames("decord", len(reader), reader.get_avg_fps(), read, timeline.seconds)


def _torchcodec(name: str, timeline: _Timeline) -> ClipFrames:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(name, num_ffmpeg_threads=int(os.environ.get("TORCHCODEC_NUM_THREADS", "8")))

    def read(indices: list[int]) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = decoder.get_frames_at(indices=indices).data.permute(0, 2, 3, 1).numpy()
        return frames

    metadata = decoder.metadata
    return ClipFrames("torchcodec", metadata.num_frames, metadata.average_fps, read, timeline.seconds)


def _pyav(path: Path, kind: Kind, budget: MediaBudget, timeline: _Timeline) -> ClipFrames:
    if not timeline.ticks:
        raise ValueError("no frames in it")
    decoder = _Decoder(path, kind, budget.limits.most_pixels(path.stat().st_size), timeline.in_order)

    def read(indices: list[int]) -> NDArray[np.uint8]:
        frames = []
        for index in indices:
            budget.check()
            frames.append(decoder.shown_at(index if timeline.in_order else timeline.ticks[index]))
        return np.stack(frames)

    # Of a single frame the rate does not matter.
    return ClipFrames(PYAV, len(timeline.ticks), timeline.rate or 1.0, read, timeline.seconds)


class _Decoder:
    """Decodes a stream forward, and from its start again where an earlier frame is asked for.

    Args:
        in_order: a frame's time is its number.
    """

    def __init__(self, path: Path, kind: Kind, most_pixels: int, in_order: bool) -> None:
        self._open = lambda: _decoded(path, kind, most_pixels, in_order)
        self._frames = self._open()
        self._shown: tuple[int, Any] | None = None
        self._next: tuple[int, Any] | None = None

    def shown_at(self, time: int) -> NDArray[np.uint8]:
        """Pixels, uint8 [H, W, 3], of the frame that is shown at a time."""
        if self._shown is not None and self._shown[0] > time:
            self._frames.close()
            self._frames, self._shown, self._next = self._open(), None, None
        if self._shown is None:
            self._shown = next(self._frames, None)
            self._next = next(self._frames, None)
        if self._shown is None:
            raise ValueError("no frame can be decoded")
        while self._next is not None and self._next[0] <= time:
            self._shown, self._next = self._next, next(self._frames, None)
        pixels: NDArray[np.uint8] = self._shown[1].to_ndarray(format="rgb24")
        return pixels


def _decoded(path: Path, kind: Kind, most_pixels: int, in_order: bool) -> Generator[tuple[int, Any], None, None]:
    """Frames, and when each is shown."""
    import av

    number = 0
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
                time = frame.pts if frame.pts is not None else frame.dts
                shown = frame if (frame.width, frame.height) == size else frame.reformat(*size)
                yield number if in_order else int(time or 0), shown
                number += 1
