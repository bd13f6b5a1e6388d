"""Reads frames from what PyAV opens, or from a GStreamer pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.gstreamer import gst_frames
from qwen3vl_edge.edge_runtime.cameras.sampling import Frame, Wanted
from qwen3vl_edge.edge_runtime.inputs.sources.read import file_path

OPEN_SECONDS, READ_SECONDS = 10.0, 5.0
DRIFT_SECONDS = 2.0


def frames(config: CameraConfig, wanted: Wanted, stop: Event) -> Iterator[Frame]:
    """Frames of one connection, until the source ends or `stop` is set.

    Args:
        wanted: called once for each frame of the source; other frames are not converted, and with an intra-only
            codec (MJPEG) not decoded.

    Raises:
        InputError: the source cannot be opened, or fails.
    """
    if config.source.startswith("gst:"):
        # A slow pipeline is not a dead one: wait for four intervals of the sampler.
        silence = max(OPEN_SECONDS, 4 / config.fps)
        yield from gst_frames(config.source.removeprefix("gst:"), wanted, stop, silence)
    else:
        yield from _av_frames(config, wanted, stop)


def _av_frames(config: CameraConfig, wanted: Wanted, stop: Event) -> Iterator[Frame]:
    import av

    device = config.source.startswith("/dev/video")
    is_file = config.source[:5].lower() == "file:"
    live = device or ("://" in config.source and not is_file)
    options = ({"rtsp_transport": "tcp"} if config.source.startswith("rtsp") else {}) | dict(config.options)
    try:
        while not stop.is_set():
            with av.open(
                str(file_path(config.source)) if is_file else config.source,
                format="v4l2" if device else None,
                options=options,
                timeout=(OPEN_SECONDS, READ_SECONDS),
            ) as container:
                yield from _decoded(container, wanted, stop, live)
            if live or not config.loop:
                return
    except (av.FFmpegError, OSError, ValueError) as error:
        # Its message may contain the URL, and with it a password.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"source {config.shown_source} cannot be read ({reason})", field="source") from None


def _decoded(container: Any, wanted: Wanted, stop: Event, live: bool) -> Iterator[Frame]:
    if not container.streams.video:
        raise InputError("source has no video", field="source")
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # frame threads would delay frames
    intra_only = bool(stream.codec_context.codec.intra_only)
    start: float | None = None
    for packet in container.demux(stream):
        if stop.is_set():
            return
        begun = packet.pts is not None and start is not None
        if intra_only and begun and not wanted(_clock(start, packet)):
            continue
        for frame in packet.decode():
            now = time.monotonic()
            position = 0.0 if frame.pts is None else float(frame.pts * frame.time_base)
            if start is None or (live and abs(start + position - now) > DRIFT_SECONDS):
                start = now - position
            seconds = now if frame.pts is None else start + position
            if not live and stop.wait(max(0.0, seconds - now)):
                return
            if (intra_only and begun) or wanted(seconds):
                yield Frame(seconds, frame.to_ndarray(format="rgb24"))


def _clock(start: float | None, packet: Any) -> float:
    return (start or 0.0) + float(packet.pts * packet.time_base)
