"""Clips: the frames are qwen-vl-utils' to the bit, and their cost is known before they are decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils.vision_process import fetch_video

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.formats.bounded_picture import FREE_PIXELS
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs import clip_reader, torch_resize
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Clip, read_clip
from qwen3vl_edge.edge_runtime.inputs.lean import resize as lean_resize
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile
from qwen3vl_edge.edge_runtime.inputs.sources.limits import AbandonedError, MediaBudget, MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.mp4_index import MAX_SAMPLES, check_claimed_samples
from tests.support.pixel_policies import QWEN_PIXELS
from tests.support.video_files import lossless_clip

PATCH = 16


def lossy_clip(path: Path, width: int, height: int, count: int, rate: int = 10) -> Path:
    """With frames that are decoded from later ones, as cameras and encoders write them."""
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "2", "g": "12", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            moved = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1), format="rgb24")
            container.mux(stream.encode(moved))
        container.mux(stream.encode())
    return path


def open_clip_file(path: Path, element: dict[str, Any], budget: MediaBudget) -> Clip:
    return read_clip(ClipFile(path, "it"), element, budget, lambda clip: clip)


def conversation(source: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", "video": source}, {"type": "text", "text": "?"}]}]


@pytest.mark.parametrize("at_once", [1, 10**9])
@pytest.mark.parametrize(
    ("width", "height", "count", "options"),
    [
        (160, 120, 73, {}),
        (322, 242, 31, {"fps": 5.0}),
        (96, 96, 24, {"nframes": 6}),
        (640, 360, 20, {"min_pixels": 1024, "max_pixels": 90_000}),
        (160, 120, 60, {"video_start": 1.0, "video_end": 4.5}),
        (160, 120, 20, {"resized_height": 100, "resized_width": 140}),
        (160, 120, 40, {"total_pixels": 60_000, "min_pixels": 4096}),
    ],
)
def test_frames_are_upstreams_to_the_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    height: int,
    count: int,
    options: dict[str, Any],
    at_once: int,
) -> None:
    """However many are decoded at once."""
    monkeypatch.setattr(clip_reader, "_PIXELS_AT_ONCE", at_once)
    path = lossy_clip(tmp_path / "clip.mp4", width, height, count)
    expected, metadata = fetch_video({"video": str(path), **options}, PATCH, return_video_metadata=True)
    clip = open_clip_file(path, options, MediaBudget())
    for frame_resize in (torch_resize.frame_resize, lean_resize.frame_resize):
        size = clip.model_size(options, QWEN_PIXELS)
        found = clip.frames(*size, MediaBudget(), frame_resize(QWEN_PIXELS))
        assert torch.equal(torch.from_numpy(found).float(), expected)
    assert clip.metadata == metadata


@pytest.mark.parametrize("content", [bytes, os.urandom], ids=["small file", "large file"])
def test_large_frames_are_refused_undecoded(tmp_path: Path, content: Callable[[int], bytes]) -> None:
    """141 kB at 8192x4320 took 13.6 GiB; 7 MB of four frames, which a picture's limit by bytes would allow, 2 GiB."""
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4096, 2304, "yuv420p"
        black = av.VideoFrame(4096, 2304, "yuv420p")
        for plane in black.planes:
            plane.update(content(plane.buffer_size))
        container.mux(stream.encode(black))
        container.mux(stream.encode())
    with pytest.raises(LimitError, match=rf"at most {FREE_PIXELS} pixels \(max_picture_pixels\), got 4096x2304"):
        open_clip_file(path, {}, MediaBudget(MediaLimits(max_picture_pixels=FREE_PIXELS)))


def test_sampled_frames_are_added_up_before_they_are_decoded(tmp_path: Path, edge: Edge) -> None:
    """4 seconds at 2 frames a second are 8 frames (qwen-vl-utils' FPS)."""
    path = lossy_clip(tmp_path / "clip.mp4", 160, 120, 40)
    pixels = 8 * 160 * 120
    edge.prepare(conversation(str(path)), MediaBudget(MediaLimits(max_clip_pixels=pixels)))
    with pytest.raises(LimitError) as caught:
        edge.prepare(conversation(str(path)), MediaBudget(MediaLimits(max_clip_pixels=pixels - 1)))
    assert f"at most {pixels - 1} (max_clip_pixels), got {pixels} (8 frames of 160x120)" in str(caught.value)
    frames = [Image.new("RGB", (50, 40))] * 4
    with pytest.raises(LimitError, match=r"max_clip_pixels.* got 8000"):
        edge.prepare(conversation(frames), MediaBudget(MediaLimits(max_clip_pixels=7999)))
    with pytest.raises(LimitError, match="max_visual_tokens"):
        edge.prepare(conversation(str(path)), MediaBudget(MediaLimits(max_visual_tokens=3)))


def test_it_ends_between_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_reader, "_PIXELS_AT_ONCE", 1)
    clip = open_clip_file(lossy_clip(tmp_path / "clip.mp4", 160, 120, 40), {}, MediaBudget())
    budget = MediaBudget()
    budget.abandon()
    with pytest.raises(AbandonedError):
        clip.frames(64, 64, budget, torch_resize.frame_resize(QWEN_PIXELS))


def test_a_playlist_leads_to_no_other_file(tmp_path: Path) -> None:
    """libavformat would read what it names, past the folders that clients may name files in."""
    lossless_clip(tmp_path / "private.mp4", 8)
    playlist = tmp_path / "clip.mp4"
    playlist.write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\nprivate.mp4\n#EXT-X-ENDLIST\n"
    )
    concatenation = tmp_path / "other.mp4"
    concatenation.write_text("ffconcat version 1.0\nfile private.mp4\n")
    for path in (playlist, concatenation):
        with pytest.raises(InputError, match="is not a clip"):
            open_clip_file(path, {}, MediaBudget())


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="has no picture"):
        open_clip_file(path, {}, MediaBudget())


def patched(path: Path, kind: bytes, offset: int, *numbers: int) -> Path:
    """The file with numbers of a box replaced; `offset` is from the box's content."""
    data = bytearray(path.read_bytes())
    struct.pack_into(f">{len(numbers)}I", data, data.index(kind) + 4 + offset, *numbers)
    path.write_bytes(data)
    return path


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def test_a_real_file_claims_what_it_has(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.mov", "clip.mkv", "clip.avi", "clip.ts"):
        lossy_clip(tmp_path / name, 96, 96, 20)
        check_claimed_samples(tmp_path / name, name)


def test_samples_of_one_size_claim_no_index(tmp_path: Path) -> None:
    """Five kilobytes took 3.4 GB: a size and a count stand for a table."""
    path = patched(lossy_clip(tmp_path / "clip.mp4", 96, 96, 20), b"stsz", 4, 1, 60_000_000)
    with pytest.raises(LimitError, match=f"claims too many frames: expected at most {MAX_SAMPLES} .*got 60000000"):
        open_clip_file(path, {}, MediaBudget())


SIZES = box(b"stsz", numbers(0, 1, 30_000))
TRACKS = {
    "fragments": box(b"moof", box(b"traf", box(b"trun", numbers(0, 2**31)))),
    "edits": box(b"moov", box(b"trak", box(b"edts", box(b"elst", numbers(0, 100))) + box(b"stbl", SIZES))),
    "a large box": numbers(1) + b"moov" + struct.pack(">Q", 16 + 20) + box(b"stsz", numbers(0, 1, 2**30)),
    "chunks of sound": box(
        b"trak",
        box(b"hdlr", numbers(0, 0) + b"soun")
        + box(b"stts", numbers(0, 1, 1, 1))
        + box(b"stsc", numbers(0, 1, 1, 2**32 - 1, 1))
        + box(b"stco", numbers(0, 1000, *range(1000))),
    ),
    "sound in ticks of two": box(
        b"trak",
        box(b"hdlr", numbers(0, 0) + b"soun") + box(b"stts", numbers(0, 1, 1, 2)) + box(b"stsz", numbers(0, 1, 2**30)),
    ),
}


@pytest.mark.parametrize("content", TRACKS.values(), ids=TRACKS)
def test_other_claims(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(box(b"ftyp", b"isom" + numbers(0)) + content)
    with pytest.raises(LimitError, match="claims too many frames"):
        check_claimed_samples(path, "it")


def test_an_hour_of_uncompressed_sound_is_no_claim(tmp_path: Path) -> None:
    samples = 48_000 * 3600
    sound = (
        box(b"hdlr", numbers(0, 0) + b"soun")
        + box(b"stts", numbers(0, 1, samples, 1))
        + box(b"stsz", numbers(0, 4, samples))
        + box(b"stsc", numbers(0, 1, 1, 48_000, 1))
        + box(b"stco", numbers(0, 3600, *range(3600)))
    )
    path = tmp_path / "clip.mov"
    path.write_bytes(box(b"moov", box(b"trak", sound)))
    check_claimed_samples(path, "it")


def test_a_compressed_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    path.write_bytes(box(b"moov", box(b"cmov", bytes(40))))
    with pytest.raises(InputError, match="compressed header"):
        check_claimed_samples(path, "it")


def test_boxes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(box(b"free", b"") * 100_002)
    with pytest.raises(LimitError, match="too many boxes"):
        check_claimed_samples(path, "it")
