"""Clips without torch reach the encoder as the reference has them, to the bit, and so do the prompts' seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils.vision_process import fetch_video

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.lean.processor import prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, prepare_prompt
from tests.edge_runtime.inputs.test_clip_frames import written
from tests.support.pixel_policies import QWEN_PIXELS

# qwen-vl-utils' policy, with limits of its keys that keep the clips small.
SMALL_QWEN = replace(QWEN_PIXELS, video=replace(QWEN_PIXELS.video, min_pixels=4096, max_pixels=65_536))
UNEVEN = [0, 1500, 1600, 1700, 2900, 5200, 7500, 9100, 9200, 9300, 9400, 9500]
# Names, how the clip is written, and a part's options.
CLIPS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("h264.mp4", {"bf": "2", "g": "12", "count": 73}, {}),
    ("fps.mp4", {"bf": "2", "size": (322, 242)}, {"fps": 5.0}),
    ("odd.mkv", {"count": 31}, {"nframes": 5, "max_pixels": 20_000}),
    ("uneven.mkv", {"times": UNEVEN}, {"nframes": 12}),
    ("uneven.mp4", {"times": UNEVEN}, {"max_frames": 4, "total_pixels": 40_000}),
    ("vp9.webm", {"codec": "libvpx-vp9", "size": (64, 130)}, {"min_pixels": 1024, "max_pixels": 90_000}),
    ("hevc.mp4", {"codec": "libx265", "x265-params": "log-level=none"}, {"resized_height": 100, "resized_width": 140}),
    ("b-frames.avi", {"bf": "2", "g": "6", "count": 40}, {"video_start": 1.0, "video_end": 2.5}),
    ("h264.ts", {"bf": "0", "g": "6"}, {}),
    ("mpeg4.mov", {"codec": "mpeg4"}, {}),
    ("full range.flv", {"pix_fmt": "yuvj420p"}, {}),
    ("one.gif", {"codec": "gif", "pix_fmt": "rgb8", "count": 1, "size": (410, 64)}, {"max_pixels": 9216}),
]


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


def same_on_both(
    edge: Edge, messages: list[dict[str, Any]], policy: BucketPolicy, seconds: str = "average"
) -> tuple[Prompt, Prompt]:
    assert edge.lean is not None
    assert edge.lean.serves(messages)
    lean = prepare_lean_prompt(messages, edge.lean, policy, None, seconds)
    reference = prepare_prompt(messages, edge.processor, policy, None, seconds)
    np.testing.assert_array_equal(lean.input_ids, reference.input_ids)
    for one, other in zip(lean.media, reference.media, strict=True):
        assert (one.kind, one.choice) == (other.kind, other.choice)
        assert one.input.pixel_values.tobytes() == other.input.pixel_values.tobytes()
        assert {**one.decoding, "reader": ""} == {**other.decoding, "reader": ""}
    return lean, reference


@pytest.mark.parametrize(("name", "form", "options"), CLIPS, ids=[item[0] for item in CLIPS])
def test_a_dozen_clips(tmp_path: Path, edge: Edge, name: str, form: dict[str, Any], options: dict[str, Any]) -> None:
    messages = asked({"type": "video", "video": str(written(tmp_path / name, **form)), **options})
    for pixels in (edge.policy.pixels, SMALL_QWEN):
        bucketed = replace(edge.policy, pixels=pixels)
        for policy, seconds in ((replace(bucketed, buckets=None), "shown"), (bucketed, "average")):
            lean, _ = same_on_both(edge, messages, policy, seconds)
            assert lean.media[0].decoding["reader"] == "pyav"
            assert lean.media[0].decoding["pixel_policy"] == pixels.name
            assert lean.media[0].decoding["pixel_limits"]


def test_lists_of_pictures_pictures_and_clips_in_one_conversation(tmp_path: Path, edge: Edge, samples: Path) -> None:
    rng = np.random.default_rng(1)
    frames = [Image.fromarray(rng.integers(0, 256, (90, 131, 3), dtype=np.uint8)) for _ in range(5)]
    clip = {"type": "video", "video": str(written(tmp_path / "clip.mp4"))}
    picture = {"type": "image", "image": str(samples / "colour.png")}
    listed = {"type": "video", "video": frames, "sample_fps": 4.0, "raw_fps": 30.0}
    for pixels in (edge.policy.pixels, SMALL_QWEN):
        same_on_both(edge, asked(clip, picture, listed, clip), replace(edge.policy, pixels=pixels))
    native = replace(edge.policy, buckets=None, pixels=SMALL_QWEN)
    for options in (
        {"min_pixels": 4096, "max_pixels": 90_000},
        {"min_pixels": 1024, "max_pixels": 20_000},
        {"resized_height": 70, "resized_width": 90, "min_pixels": 1024, "max_pixels": 20_000},
    ):
        lean, _ = same_on_both(edge, asked({**listed, **options}), native)
        expected, metadata = fetch_video({"video": frames, **listed, **options}, 16, return_video_metadata=True)
        assert lean.media[0].grid.as_list() == [3, expected.shape[2] // 16, expected.shape[3] // 16]
        hf = edge.processor.hf.video_processor
        values = hf(videos=[expected], do_resize=False, do_sample_frames=False, video_metadata=[metadata])
        assert np.array_equal(lean.media[0].input.pixel_values, np.asarray(values["pixel_values_videos"]))


def test_what_cannot_be_used_is_refused_alike(tmp_path: Path, edge: Edge) -> None:
    path = str(written(tmp_path / "clip.mp4", count=3))
    clip = {"type": "video", "video": path}
    rng = np.random.default_rng(1)
    frames = [Image.fromarray(rng.integers(0, 256, (side, 300, 3), dtype=np.uint8)) for side in (60, 190)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**clip, "nframes": 8}, "from 2 to 3, got 8"),
        ({**clip, "video_start": 9.0}, "no two frames between"),
        ({**clip, "min_pixels": 9000, "max_pixels": 5000}, "max_pixels is below min_pixels"),
        ({"type": "video", "video": frames}, "more than one size"),
        ({"type": "video", "video": [Image.new("RGB", (900, 3))]}, "aspect ratio"),
    ]
    for pixels in (edge.policy.pixels, SMALL_QWEN):
        policy = replace(edge.policy, pixels=pixels)
        for part, words in wrong:
            found = []
            for prepare, processor in ((prepare_lean_prompt, edge.lean), (prepare_prompt, edge.processor)):
                with pytest.raises(ContractError, match=words) as caught:
                    prepare(asked(part), processor, policy)  # type: ignore[operator]
                found.append(str(caught.value))
            assert found[0] == found[1]


def test_placeholders_in_the_text_are_refused(tmp_path: Path, edge: Edge) -> None:
    assert edge.lean is not None
    clip = {"type": "video", "video": str(written(tmp_path / "clip.mp4"))}
    for word in ("<|image_pad|>", "<|video_pad|>"):
        with pytest.raises(InputError, match=r"expected 0 <\|image_pad\|> and 1 <\|video_pad\|>"):
            prepare_lean_prompt(asked(clip, {"type": "text", "text": word}), edge.lean, edge.policy)
