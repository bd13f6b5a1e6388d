"""A GStreamer pipeline as a camera: frames apart from messages, silence, floods, failures, other sizes, a quick end."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.gstreamer import gst_frames
from qwen3vl_edge.edge_runtime.cameras.sampling import Frame
from qwen3vl_edge.edge_runtime.cameras.source import frames

pytestmark = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None, reason="runs where gst-launch-1.0 is installed (gstreamer1.0-tools)"
)
RED = "videotestsrc pattern=red"
SMALL = "video/x-raw,width=61,height=40,framerate=30/1"


def read(pipeline: str, silence: float = 10) -> list[Frame]:
    return list(gst_frames(pipeline, lambda _: True, threading.Event(), silence))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def is_red(frame: Frame) -> bool:
    return frame.rgb.shape == (40, 61, 3) and bool((frame.rgb[..., 0] > 200).all() and (frame.rgb[..., 1:] < 50).all())


def test_frames_of_an_odd_width() -> None:
    config = CameraConfig("front", f"gst:{RED} num-buffers=3 ! {SMALL}")
    found = list(frames(config, lambda _: True, threading.Event()))
    assert len(found) == 3
    assert all(map(is_red, found))
    assert found[0].seconds <= time.monotonic()


def test_messages_in_mid_stream_harm_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """More on both than pipes hold: GStreamer's debug log, an element's messages for each frame."""
    monkeypatch.setenv("GST_DEBUG", "6")
    monkeypatch.setenv("GST_DEBUG_NO_COLOR", "1")
    found = read(f"{RED} num-buffers=60 ! {SMALL} ! identity silent=false")
    assert len(found) == 60
    assert all(map(is_red, found))


@pytest.mark.parametrize("silent", [f"{RED} ! {SMALL} ! identity sleep-time=100000000", "fakesrc filltype=nothing ! "
    "identity drop-probability=1 ! video/x-raw,format=RGB,width=8,height=8,framerate=1/1"])  # fmt: skip
def test_a_silent_pipeline_ends_at_once(silent: str) -> None:
    stop = threading.Event()
    found: list[Frame] = []
    before, open_before = children(), len(os.listdir("/proc/self/fd"))
    reader = threading.Thread(target=lambda: found.extend(gst_frames(silent, lambda _: True, stop, 600)))
    reader.start()
    time.sleep(0.5)
    stop.set()
    reader.join(20)  # far less than the pipeline would have slept
    assert not reader.is_alive()
    assert found == []
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_silence_is_a_loss() -> None:
    with pytest.raises(InputError, match="sent nothing"):
        read(f"{RED} ! {SMALL} ! identity sleep-time=100000000", silence=0.5)


def test_a_generator_that_is_closed_leaves_no_child() -> None:
    before = children()
    endless = gst_frames(f"{RED} ! {SMALL}", lambda _: True, threading.Event(), 10)
    assert is_red(next(endless))
    assert children() != before
    endless.close()  # type: ignore[attr-defined]
    assert children() == before


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("nosuchelement", "nosuchelement"),
        ("filesrc location=/nowhere.raw ! rawvideoparse width=8 height=8 format=rgb", "/nowhere.raw"),
        (f"{RED} num-buffers=9 ! {SMALL} ! identity error-after=5", "failed"),
    ],
)
def test_what_fails_is_named(pipeline: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read(pipeline)
    assert words in f"{refused.value} {refused.value.got}"


def test_a_changed_size_begins_anew() -> None:
    """Frames have no marks between them: what comes after the change cannot be told apart by its bytes."""
    both = f"concat name=both {RED} num-buffers=3 ! video/x-raw,width=64,height=32 ! both. "
    both += f"{RED} num-buffers=3 ! video/x-raw,width=32,height=64 ! both. both."
    with pytest.raises(InputError, match="changed the size"):
        read(both)
