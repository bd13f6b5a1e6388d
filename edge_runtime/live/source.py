"""Where frames come from: what PyAV opens, and a GStreamer pipeline."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from edge_runtime.live.config import CameraConfig

OPEN_SECONDS, READ_SECONDS = 10.0, 5.0
DRIFT_SECONDS = 2.0
_CAPS = re.compile(r"fdsink.*caps = video/x-raw.*width=\(int\)(\d+), height=\(int\)(\d+)")


@dataclass(frozen=True)
class Frame:
    """A sampled frame: seconds on this machine's monotonic clock, and uint8 [H, W, 3]."""

    seconds: float
    rgb: NDArray[np.uint8]


Wanted = Callable[[float], bool]


def frames(config: CameraConfig, wanted: Wanted, stop: Event) -> Iterator[Frame]:
    """Frames of one connection, until the source ends or `stop` is set.

    Args:
        wanted: called once for each frame of the source; frames that are not wanted are not converted, and where
            each frame stands alone (MJPEG) not decoded.

    Raises:
        InputError: the source cannot be opened, or fails.
    """
    if config.source.startswith("gst:"):
        yield from _gst_frames(config.source.removeprefix("gst:"), wanted, stop)
    else:
        yield from _av_frames(config, wanted, stop)


def _av_frames(config: CameraConfig, wanted: Wanted, stop: Event) -> Iterator[Frame]:
    import av

    device = config.source.startswith("/dev/video")
    live = device or ("://" in config.source and not config.source.startswith("file://"))
    options = ({"rtsp_transport": "tcp"} if config.source.startswith("rtsp") else {}) | dict(config.options)
    try:
        while not stop.is_set():
            with av.open(
                config.source.removeprefix("file://"),
                format="v4l2" if device else None,
                options=options,
                timeout=(OPEN_SECONDS, READ_SECONDS),
            ) as container:
                yield from _decoded(container, wanted, stop, live)
            if live or not config.loop:
                return
    except (av.FFmpegError, OSError, ValueError) as error:
        # Its message may hold the URL, and with it a password.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"source {config.shown_source} cannot be read ({reason})", field="source") from None


def _decoded(container: Any, wanted: Wanted, stop: Event, live: bool) -> Iterator[Frame]:
    if not container.streams.video:
        raise InputError("source has no video", field="source")
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # frame threads would hold frames back
    alone = bool(stream.codec_context.codec.intra_only)
    start: float | None = None
    for packet in container.demux(stream):
        if stop.is_set():
            return
        begun = packet.pts is not None and start is not None
        if alone and begun and not wanted(_clock(start, packet)):
            continue
        for frame in packet.decode():
            now = time.monotonic()
            known = 0.0 if frame.pts is None else float(frame.pts * frame.time_base)
            if start is None or (live and abs(start + known - now) > DRIFT_SECONDS):
                start = now - known
            seconds = now if frame.pts is None else start + known
            if not live and stop.wait(max(0.0, seconds - now)):
                return
            if (alone and begun) or wanted(seconds):
                yield Frame(seconds, frame.to_ndarray(format="rgb24"))


def _clock(start: float | None, packet: Any) -> float:
    return (start or 0.0) + float(packet.pts * packet.time_base)


def _gst_frames(pipeline: str, wanted: Wanted, stop: Event) -> Iterator[Frame]:
    """Raw RGB through a pipe; the size is read from the caps that `gst-launch-1.0 -v` tells."""
    command = ["gst-launch-1.0", "-v", *shlex.split(pipeline), "!", "videoconvert", "!", "video/x-raw,format=RGB"]
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen([*command, "!", "fdsink", "fd=2"], stdout=log, stderr=subprocess.PIPE)
        except OSError as error:
            raise InputError(f"gst-launch-1.0 cannot be run ({error.strerror})", field="source") from None
        assert process.stderr is not None
        try:
            yield from _raw_frames(process.stderr, log, wanted, stop)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def _raw_frames(pipe: IO[bytes], log: IO[bytes], wanted: Wanted, stop: Event) -> Iterator[Frame]:
    first = pipe.read(1)
    log.seek(0)
    told = log.read().decode(errors="replace")
    caps = _CAPS.search(told)
    if not first or caps is None:
        raise InputError("the GStreamer pipeline gives no frames", field="source", got=told[-200:])
    width, height = int(caps[1]), int(caps[2])
    stride = (width * 3 + 3) // 4 * 4  # GStreamer pads rows of RGB to four bytes
    while not stop.is_set():
        body = first + pipe.read(stride * height - len(first))
        first = b""
        if len(body) < stride * height:
            return
        seconds = time.monotonic()
        if wanted(seconds):
            rows = np.frombuffer(body, np.uint8).reshape(height, stride)
            yield Frame(seconds, rows[:, : width * 3].reshape(height, width, 3).copy())
