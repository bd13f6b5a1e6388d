"""RTSP for real: a GStreamer server in a process of its own, read by FFmpeg's client and by GStreamer's."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest

from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.sampling import Sampler
from qwen3vl_edge.edge_runtime.cameras.source import frames

PYTHON = "/usr/bin/python3"  # the system's: Debian's bindings are for it
SERVER = """
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
if not all(map(Gst.ElementFactory.find, ("jpegenc", "rtpjpegpay", "rtpjpegdepay", "jpegdec", "rtspsrc"))):
    raise SystemExit("no gstreamer1.0-plugins-good")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1"); server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true pattern=red ! video/x-raw,width=320,height=240,framerate=15/1,"
    "format=I420 ! jpegenc ! rtpjpegpay name=pay0 pt=26 )")
server.get_mount_points().add_factory("/stream", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    needs = "python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-tools, gstreamer1.0-plugins-good"
    if shutil.which(PYTHON) is None or shutil.which("gst-launch-1.0") is None:
        pytest.skip(f"runs where Debian's {needs} are installed")
    process = subprocess.Popen([PYTHON, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        told = process.stdout.readline().strip()
        if not told:
            pytest.skip(f"runs where Debian's {needs} are installed")
        yield int(told)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "source",
    ["rtsp://127.0.0.1:{}/stream",
     "gst:rtspsrc location=rtsp://127.0.0.1:{}/stream protocols=tcp ! rtpjpegdepay ! jpegdec"],
)  # fmt: skip
def test_frames_of_an_rtsp_camera(source: str, port: int) -> None:
    config = CameraConfig("front", source.format(port), fps=5)
    stop, found = threading.Event(), []
    for frame in frames(config, Sampler(5).take, stop):
        found.append(frame)
        if len(found) == 4:
            stop.set()
    assert [frame.rgb.shape for frame in found] == [(240, 320, 3)] * 4
    assert all(frame.rgb[..., 0].mean() > 200 and frame.rgb[..., 1:].mean() < 50 for frame in found)
    times = [frame.seconds for frame in found]
    assert times == sorted(times)
