"""A sliding window gives what encoding its clip at once gives, from real streams, and holds no more than it should."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.pixels.processor_arguments import read_processor_arguments
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.frame_patches import patchify, resize_frame
from qwen3vl_edge.edge_runtime.cameras.sampling import Sampler
from qwen3vl_edge.edge_runtime.cameras.source import frames
from qwen3vl_edge.edge_runtime.cameras.window import Window
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings
from tests.support.video_files import lossless_clip

CHOICE = BucketChoice(Grid(1, 6, 8), Grid(1, 6, 8), fixed=True, scale=1.0, distortion=0.0)


def test_window_is_the_clip_encoded_at_once(edge: Edge, tmp_path: Path) -> None:
    """Pixels, token ids with timestamps and embeddings, to the bit, through qwen-vl-utils' own reader of a file."""
    path = tmp_path / "clip.mp4"
    pictures = lossless_clip(path, 8)
    part = {"type": "video", "video": str(path), "nframes": 8, "resized_height": 96, "resized_width": 128}
    question = {"type": "text", "text": "What?"}
    whole = edge.prepare([{"role": "user", "content": [part, question]}])
    window = Window("front", 4, 2, lambda pair: patchify(pair, edge.processor.hf))
    encoded: list[int] = []

    def encode(items: Sequence[EncoderInput]) -> list[Embeddings]:
        encoded.append(len(items))
        return edge.encode_items(items)

    for index, picture in enumerate(pictures):
        if window.add(100 + index / 2, resize_frame(picture, 96, 128, edge.policy.pixels)) and index < 6:
            snapshot = window.snapshot(100 + index / 2, CHOICE)
            assert snapshot is not None
            snapshot.embeddings(encode)
    snapshot = window.snapshot(103.5, CHOICE)
    assert snapshot is not None
    pairs = [
        patchify(
            np.stack([resize_frame(p, 96, 128, edge.policy.pixels) for p in pictures]), edge.processor.hf
        ).pixel_values
    ]
    np.testing.assert_array_equal(np.concatenate(pairs), whole.prompt.media[0].input.pixel_values)
    live = edge.prepare([{"role": "user", "content": [{"type": "video", "video": snapshot}, question]}])
    np.testing.assert_array_equal(live.prompt.input_ids, whole.prompt.input_ids)
    assert live.prompt.media[0].decoding == {
        "pixel_policy": "checkpoint",
        "pixel_limits": "4096 to 524288 of all 8 frames",  # 64 visual tokens a frame
    }
    with pytest.raises(InputError, match="window has its size already"):
        edge.prepare(
            [{"role": "user", "content": [{"type": "video", "video": snapshot}, question]}],
            arguments=read_processor_arguments({"max_pixels": 9999}),
        )
    assert snapshot.encoded == 3
    ours, theirs = edge.embed(live).request.media[0], edge.embed(whole).request.media[0]
    np.testing.assert_array_equal(ours.embeds, theirs.embeds)
    for level, other in zip(ours.deepstack, theirs.deepstack, strict=True):
        np.testing.assert_array_equal(level, other)
    snapshot.embeddings(encode)
    assert encoded == [1, 1, 1]
    assert window.encoded == 4


def test_window_never_holds_more_than_its_seconds() -> None:
    window = Window("front", 4, 2, lambda pair: EncoderInput(Grid(1, 2, 2), np.zeros((4, 4), np.float32)))
    frame = np.zeros((3, 32, 32), np.uint8)
    for index in range(1000):
        window.add(index / 2, frame)
        assert len(window) <= window.capacity == 4
    assert window.unencoded == 1000 // 2 - 4
    last = window.snapshot(499.5, CHOICE, 2)
    assert last is not None
    assert len(last.patches) == 2
    assert window.snapshot(510, CHOICE) is None  # the source stands still: nothing old is shown as new
    window.add(520, frame)
    assert not window.add(530, frame)
    assert window.unpaired == 1


def test_a_source_slower_than_asked_gives_pairs_too() -> None:
    window = Window("front", 8, 8, lambda pair: EncoderInput(Grid(1, 2, 2), np.zeros((4, 4), np.float32)))
    frame = np.zeros((3, 32, 32), np.uint8)
    for index in range(30):
        window.add(float(index), frame)
    assert window.unpaired <= 2
    whole, end = window.snapshot(29.0, CHOICE), window.snapshot(29.0, CHOICE, 4)
    assert whole is not None
    assert end is not None
    assert len(whole.patches) >= 4
    assert end.patches[-1].times[1] - end.patches[0].times[0] < 4
    before = window.unpaired
    window.add(30.0, frame)
    window.add(100.0, frame)  # it was away
    window.add(160.0, frame)
    assert window.unpaired == before + 2


def test_sampling_survives_jitter_duplicates_and_gaps() -> None:
    rng = np.random.default_rng(0)
    even = Sampler(2)
    assert [index for index in range(100) if even.take(index / 25)] == [0, 12, 25, 37, 50, 62, 75, 87]
    jitter = Sampler(2)
    assert all(jitter.take(index / 2 + rng.uniform(-0.05, 0.05)) for index in range(50))
    odd = Sampler(1)
    assert [odd.take(at) for at in (5, 5, 4.9, 6, 9, 9.5, 10, 7)] == [
        True,
        False,
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert odd.take(0.0 - 100)  # a clock that begins anew


def test_a_file_is_read_in_real_time_and_a_dead_source_is_named(tmp_path: Path) -> None:
    pictures = lossless_clip(tmp_path / "clip.mp4", 4, fps=20)
    config = CameraConfig("front", str(tmp_path / "clip.mp4"), fps=20, loop=False)
    found = list(frames(config, Sampler(20).take, threading.Event()))
    assert len(found) == 4
    for frame, picture in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(frame.rgb, picture)
    secret = CameraConfig("front", "http://user:secret@127.0.0.1:9/x")
    with pytest.raises(InputError, match="cannot be read") as refused:
        list(frames(secret, Sampler(1).take, threading.Event()))
    assert "secret" not in str(refused.value)
