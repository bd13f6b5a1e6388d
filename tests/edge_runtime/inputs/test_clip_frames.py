"""Readers of clips: on every file that two of them take, the same frames and seconds; what one cannot, PyAV reads."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs import clip_frames, clip_reader
from qwen3vl_edge.edge_runtime.inputs.clip_frames import PYAV, ClipFrames, open_frames
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Clip, read_clip
from qwen3vl_edge.edge_runtime.inputs.lean.clip_resize import resize_frames
from qwen3vl_edge.edge_runtime.inputs.prompt import prepare_prompt
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import ClipHeader, check_clip
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits

MILLISECOND = Fraction(1, 1000)


def written(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (160, 120),
    times: list[int] | None = None,
    count: int = 24,
    rate: int = 10,
    **options: str,
) -> Path:
    """A clip of moving noise and shades, ten frames a second, or with frames at these milliseconds."""
    width, height = size
    rng = np.random.default_rng(3)
    shades = np.indices((height, width)).sum(0)[..., None] * np.array([1, 2, 3])
    picture = ((shades + rng.integers(0, 60, (height, width, 3))) % 256).astype(np.uint8)
    colours = {name: options.pop(name) for name in ("colorspace", "color_range") if name in options}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for name, value in colours.items():
            setattr(stream.codec_context, name, int(value))
        if times is not None:
            stream.codec_context.time_base = stream.time_base = MILLISECOND
        for number in range(count if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 5 * number, 1), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path, reader: str) -> ClipFrames:
    """By this reader alone."""
    return open_frames(path, check_clip(path, "it", MediaLimits()), MediaBudget(), reader)


def opened(path: Path, element: dict[str, Any] | None = None, *, pyav_alone: bool = False) -> Clip:
    return read_clip(ClipFile(path, "it"), element or {}, MediaBudget(), lambda clip: clip, pyav_alone=pyav_alone)


def in_order(path: Path) -> list[NDArray[np.uint8]]:
    """Every frame as FFmpeg decodes it from the first packet on, which is the order in which they are shown."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"bf": "2", "g": "12"},
    "h264.mov": {},
    "h264.mkv": {"bf": "2"},
    "h264.avi": {"bf": "0"},
    "h264.ts": {"bf": "0"},
    "h264.flv": {"bf": "2"},
    "wide.mp4": {"size": (642, 358)},
    "yuv444.mp4": {"pix_fmt": "yuv444p"},
    "yuv422.mkv": {"pix_fmt": "yuv422p"},
    "full range.mp4": {"pix_fmt": "yuvj420p"},
    "bt709.mp4": {"colorspace": "1", "color_range": "1"},
    "bt709 full.mp4": {"colorspace": "1", "color_range": "2"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "0"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none"},
    "rgb.mkv": {"codec": "libx264rgb", "pix_fmt": "rgb24", "qp": "0"},
    "uneven.mp4": {"times": [0, 1500, 1600, 1700, 2900, 5200, 7500, 9100, 9200, 9300, 9400, 9500]},
    "uneven.mkv": {"times": [0, 1500, 1600, 1700, 2900, 5200, 7500, 9100, 9200, 9300, 9400, 9500]},
}


@pytest.mark.parametrize("name", CLIPS)
def test_two_readers_give_the_same_frames_and_seconds(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, **CLIPS[name])
    upstream, ours = (frames_of(path, reader) for reader in ("decord", PYAV))
    assert (ours.total, ours.fps) == (upstream.total, pytest.approx(upstream.fps, rel=1e-9))
    indices = [0, 1, 2, ours.total // 2, ours.total - 1]
    assert np.array_equal(ours.read(indices), upstream.read(indices))
    assert np.array_equal(ours.read([3]), upstream.read([3]))  # backwards
    times = CLIPS[name].get("times") or [100 * number for number in range(24)]
    found = [[frames.seconds(index) for index in indices] for frames in (ours, upstream)]
    assert found[0] == found[1] == pytest.approx([times[index] / 1000 for index in indices], abs=2e-3)


# Which decord reads wrongly, and tells nobody: it begins at the second key frame, or takes other frames than asked for.
UNINDEXED: dict[str, dict[str, Any]] = {
    "h264.ts": {"bf": "0", "g": "6"},
    "mpeg2.ts": {"codec": "mpeg2video", "rate": 25, "count": 60},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25, "count": 60},
    "b-frames.avi": {"bf": "2", "g": "6"},
}


@pytest.mark.parametrize("name", UNINDEXED)
def test_files_without_an_index_are_pyavs(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, **UNINDEXED[name])
    expected = in_order(path)
    clip = opened(path)
    assert clip.metadata["video_backend"] == PYAV
    assert clip.metadata["total_num_frames"] == len(expected)
    for indices in ([0, 3, 5, len(expected) - 1], list(range(len(expected)))):
        assert np.array_equal(clip.read(indices), [expected[index] for index in indices])


def test_pyav_takes_over_where_a_reader_fails_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip is then PyAV's from its first frame on, and is paid for once."""
    path = written(tmp_path / "clip.mp4")
    expected = opened(path, {"nframes": 12}, pyav_alone=True)
    decord_opens = clip_frames._decord

    def failing(name: str, timeline: Any) -> ClipFrames:
        frames = decord_opens(name, timeline)

        def read(indices: list[int]) -> NDArray[np.uint8]:
            if max(indices) > 10:
                raise RuntimeError("[16:04:59] /a/b.cc:288: [it] Error sending packet.")
            return frames.read(indices)

        return replace(frames, read=read)

    monkeypatch.setattr(clip_frames, "_decord", failing)
    monkeypatch.setattr(clip_reader, "_PIXELS_AT_ONCE", 1)
    tokens: list[int] = []
    budget = MediaBudget(MediaLimits(max_clip_pixels=12 * 160 * 120), claim_tokens=tokens.append)

    def used(clip: Clip) -> tuple[str, Any]:
        budget.add_visual_tokens(24)
        return clip.metadata["video_backend"], clip.frames(64, 96, budget, resize_frames)

    reader, frames = read_clip(ClipFile(path, "it"), {"nframes": 12}, budget, used)
    assert reader == PYAV
    assert np.array_equal(frames, expected.frames(64, 96, MediaBudget(), resize_frames))
    assert tokens == [24]
    budget.add_visual_tokens(8)  # of another clip, which pays
    assert tokens == [24, 8]


# What decord cannot read, or says nothing useful of.
ALONE: dict[str, dict[str, Any]] = {
    "av1.mp4": {"codec": "libsvtav1", "size": (192, 128)},
    "moving.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "small.mp4": {"size": (16, 16)},
    "short.ts": {"count": 3},
    "b-frames.ts": {"bf": "2"},
}


@pytest.mark.parametrize("name", ALONE)
def test_what_others_cannot_read(tmp_path: Path, edge: Edge, name: str) -> None:
    path = written(tmp_path / name, **ALONE[name])
    part = {"type": "video", "video": str(path)}
    prompt = prepare_prompt([{"role": "user", "content": [part]}], edge.processor, edge.policy)
    assert prompt.media[0].kind == "video"
    assert prompt.media[0].decoding["reader"] in ("decord", PYAV)


def test_webm_without_a_duration(tmp_path: Path, edge: Edge) -> None:
    """As browsers record it: written to something that cannot be rewound."""

    class Pipe:
        def __init__(self, path: Path) -> None:
            self._file = path.open("wb")
            self.write = self._file.write
            self.close = self._file.close

    whole = written(tmp_path / "whole.webm", "libvpx", **{"auto-alt-ref": "0"})
    path = tmp_path / "clip.webm"
    pipe = Pipe(path)
    with av.open(str(whole)) as source, av.open(pipe, "w", format="webm", options={"live": "1"}) as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    pipe.close()
    clip = opened(path)
    expected = opened(whole)
    assert clip.metadata["video_backend"] == PYAV
    assert np.array_equal(clip.read(clip.indices), expected.read(expected.indices))


def test_a_file_of_one_frame_is_a_list_of_one(tmp_path: Path, edge: Edge) -> None:
    path = written(tmp_path / "one.mp4", count=1)
    with av.open(str(path)) as container:
        picture = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    found, expected = (
        prepare_prompt([{"role": "user", "content": [{"type": "video", "video": source}]}], edge.processor, edge.policy)
        for source in (str(path), [picture])
    )
    assert np.array_equal(found.input_ids, expected.input_ids)
    assert np.array_equal(found.media[0].input.values, expected.media[0].input.values)


def test_each_readers_reason_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat")
    data[at + 4 : data.index(b"moov") - 4] = bytes(data.index(b"moov") - at - 8)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read \(decord: .+; pyav: ") as caught:
        opened(path)
    assert "torchvision" not in str(caught.value)


TIMES = [0, 1400, 1600, 1800, 2900, 5100, 7500, 9100, 9200, 9400, 9600, 9800]


def test_seconds_of_a_variable_rate(tmp_path: Path, edge: Edge) -> None:
    """Prompts have the mean of a temporal patch's two frames (`_calculate_timestamps` of transformers' Qwen3-VL)."""
    path = written(tmp_path / "clip.mkv", times=TIMES)
    part = {"type": "video", "video": str(path), "nframes": 12}
    messages = [{"role": "user", "content": [part]}]
    found = {
        seconds: prepare_prompt(messages, edge.processor, edge.policy, clip_seconds=seconds)
        for seconds in ("average", "shown")
    }
    words = {
        seconds: edge.processor.hf.tokenizer.decode(prompt.input_ids.tolist()) for seconds, prompt in found.items()
    }
    for first, second in zip(TIMES[::2], TIMES[1::2], strict=True):
        assert f"<{(first + second) / 2000:.1f} seconds>" in words["shown"]
    assert words["average"] != words["shown"]
    fps = opened(path, part).metadata["fps"]
    off = max(abs(index / fps - time / 1000) for index, time in enumerate(TIMES))
    assert found["average"].media[0].decoding["seconds"] == f"average, up to {off:.2f} off"
    assert found["shown"].media[0].decoding["seconds"] == "shown"
    assert np.array_equal(found["shown"].media[0].input.values, found["average"].media[0].input.values)


def test_an_even_rate_needs_no_note(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mp4")
    assert opened(path).decoding("average") == {"reader": "decord"}


def test_a_reader_that_chooses_a_demuxer_gets_only_what_is_of_one_kind(tmp_path: Path) -> None:
    """A stream that does not begin with a packet is read, by the demuxer that is named."""
    path = written(tmp_path / "clip.ts")
    path.write_bytes(b"#EXTM" * 3 + path.read_bytes())
    header = check_clip(path, "it", MediaLimits())
    assert not header.for_every_reader
    assert opened(path).metadata["video_backend"] == PYAV
    assert isinstance(header, ClipHeader)
