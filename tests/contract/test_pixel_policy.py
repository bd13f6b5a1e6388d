"""Pixel policies: sizes are those of transformers' processors and of qwen-vl-utils, for policies and for requests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from qwen_vl_utils import vision_process
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as image_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_resize

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.pixels.policy import (
    ALL_FRAMES,
    CHECKPOINT,
    ClipLimits,
    PictureLimits,
    PixelPolicy,
    qwen_vl_utils_policy,
)
from qwen3vl_edge.contract.pixels.processor_arguments import NO_ARGUMENTS, read_processor_arguments
from qwen3vl_edge.contract.pixels.smart_resize import clip_resize, processor_resize

QWEN = qwen_vl_utils_policy(32)
RELEASED = PixelPolicy(
    CHECKPOINT, PictureLimits(65_536, 16_777_216), ClipLimits(ALL_FRAMES, 4096, 25_165_824), factor=32
)


def checkpoint(cap: bool, least: int = 4096, most: int = 4_194_304) -> PixelPolicy:
    limits = ClipLimits(ALL_FRAMES, least, most, frame_max_pixels=64 * 32**2 if cap else None)
    return PixelPolicy(CHECKPOINT, PictureLimits(4096, 262_144), limits)


def outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return call(*arguments, **named)
    except (ValueError, AssertionError):
        return "refused"


def test_sizes_are_the_processors() -> None:
    """Slivers too, of which transformers rounds a side to nothing at first."""
    rng = random.Random(3)
    for _ in range(10_000):
        height, width = (int(10 ** rng.uniform(0, 3.5)) for _ in range(2))
        least = rng.choice([1, 4096, 65_536, rng.randint(1, 10**6)])
        most = rng.choice([16_384, 262_144, least, rng.randint(1, 10**6)])
        frames = rng.randint(2, 70)
        picture = (height, width, 32, least, most)
        assert outcome(processor_resize, *picture) == outcome(image_resize, *picture), picture
        ours = outcome(clip_resize, frames, height, width, 32, 2, least, most)
        theirs = outcome(video_resize, frames, height, width, 2, 32, least, most)
        assert ours == theirs, (frames, height, width, least, most)


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("frames", [2, 5, 8, 40])
def test_a_clip_has_the_processors_size(cap: bool, frames: int) -> None:
    import torch

    rng = random.Random(frames)
    for least, most in ((4096, 262_144), (4096, 4_194_304), (131_072, 300_000)):
        policy = checkpoint(cap, least, most)
        size = {"shortest_edge": least, "longest_edge": most}
        processor = Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=cap, max_video_tokens=64)
        height, width = rng.randint(20, 250), rng.randint(20, 250)
        video = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
        made = processor(videos=[video], do_sample_frames=False, return_tensors="pt")["video_grid_thw"][0].tolist()
        rows, columns = policy.clip_size(frames, height, width)
        assert made[1:] == [rows // 16, columns // 16], (cap, frames, height, width, least, most)


def test_the_other_policy_is_qwen_vl_utils() -> None:
    rng = random.Random(5)
    for _ in range(5000):
        height, width = (int(10 ** rng.uniform(1.3, 3.7)) for _ in range(2))
        given = {name: rng.randint(1, 10**6) for name in ("min_pixels", "max_pixels") if rng.random() < 0.5}
        limits = {"min_pixels": 4096, "max_pixels": 16384 * 1024} | given
        ours = outcome(QWEN.picture_size, height, width, given)
        theirs = outcome(vision_process.smart_resize, height, width, 32, **limits)
        assert ours == theirs or 0 in theirs, (height, width, given)


@pytest.mark.parametrize(
    "given",
    [
        {"min_pixels": 1024, "max_pixels": 20_000},
        {"min_pixels": 5000, "max_pixels": 60_000, "total_pixels": 200_000},
        {"min_pixels": 90_000, "max_pixels": 10**6, "total_pixels": 10**8},
        {"resized_height": 100, "resized_width": 140},
    ],
)
def test_a_part_with_all_its_limits_has_one_size_under_both_policies(given: dict[str, Any]) -> None:
    """The meaning of qwen-vl-utils' keys does not depend on the policy."""
    for frames in (2, 8, 40):
        for height, width in ((360, 640), (64, 96), (200, 150)):
            expected = QWEN.clip_size(frames, height, width, given)
            assert checkpoint(False, most=10**9).clip_size(frames, height, width, given) == expected
    limits = {name: given[name] for name in given if name != "total_pixels"}
    assert RELEASED.picture_size(360, 640, limits) == QWEN.picture_size(360, 640, limits)


def test_a_limit_that_a_part_does_not_name_is_the_policys() -> None:
    assert RELEASED.picture_size(64, 64) == (256, 256)
    assert RELEASED.picture_size(64, 64, {"max_pixels": 10**6}) == (256, 256)
    assert RELEASED.picture_size(64, 64, {"min_pixels": 1024}) == (64, 64)
    assert RELEASED.picture_size(1000, 1000, {"max_pixels": 16_384}) == (128, 128)  # below the policy's least
    assert RELEASED.picture_evidence({"max_pixels": 16_384})["pixel_limits"] == "16384 to 16384"
    assert checkpoint(True).clip_evidence(8, {"max_pixels": 1000}) == {
        "pixel_policy": "checkpoint",
        "pixel_limits": "4096 to 8000 of all 8 frames",
    }
    with pytest.raises(InputError, match="max_pixels is below min_pixels of the pixel policy: expected at least 4096"):
        QWEN.picture_size(64, 64, {"max_pixels": 1000})
    with pytest.raises(InputError, match="min_pixels is above the pixel policy's max_pixels"):
        QWEN.picture_size(64, 64, {"min_pixels": 10**9})
    assert QWEN.clip_evidence(8)["pixel_limits"] == "131072 to 786432 a frame"


def test_a_requests_arguments_replace_the_processors_limits() -> None:
    """As vLLM takes them: a limit that is not named stays the checkpoint's, even where it is then above the other."""
    for kwargs in (
        {"max_pixels": 16_384},
        {"size": {"longest_edge": 16_384}},
        {"images_kwargs": {"max_pixels": 16_384}},
    ):
        policy = RELEASED.with_arguments(read_processor_arguments(kwargs), clips=True)
        assert policy.image == PictureLimits(65_536, 16_384)
        assert policy.picture_size(300, 300) == image_resize(300, 300, 32, 65_536, 16_384)
        assert policy.video.max_pixels == (25_165_824 if "images_kwargs" in kwargs else 16_384)
    both = read_processor_arguments({"min_pixels": 2048, "videos_kwargs": {"size": {"shortest_edge": 9000}}})
    assert (both.image.lowest, both.video.lowest, both.video.highest) == (2048, 9000, None)
    assert read_processor_arguments({}) == read_processor_arguments(None) == NO_ARGUMENTS
    assert QWEN.with_arguments(read_processor_arguments({"max_pixels": 9999}), clips=False).image.max_pixels == 9999
    with pytest.raises(InputError, match="bounds each frame") as caught:
        QWEN.with_arguments(read_processor_arguments({"size": {"longest_edge": 9999}}), clips=True)
    assert caught.value.field == "mm_processor_kwargs.size.longest_edge"


@pytest.mark.parametrize(
    ("kwargs", "part", "field", "words"),
    [
        ({"size": {"longest_edge": 999}}, {}, "mm_processor_kwargs.size.longest_edge", "of the pixel policy"),
        ({"max_pixels": 999}, {}, "mm_processor_kwargs.max_pixels", "is below min_pixels of the pixel policy"),
        ({"min_pixels": 10**9}, {}, "mm_processor_kwargs.min_pixels", "is above the pixel policy's max_pixels"),
        (
            {"images_kwargs": {"size": {"shortest_edge": 9000}}, "max_pixels": 10**6},
            {"max_pixels": 5000},
            "max_pixels",
            "max_pixels is below mm_processor_kwargs.images_kwargs.size.shortest_edge",
        ),
        (
            {"images_kwargs": {"size": {"longest_edge": 9000}}, "min_pixels": 99},
            {"min_pixels": 9001},
            "mm_processor_kwargs.images_kwargs.size.longest_edge",
            "is below min_pixels",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_limit_is_named_as_the_client_named_it(
    kwargs: dict[str, Any], part: dict[str, Any], field: str, words: str
) -> None:
    policy = QWEN.with_arguments(read_processor_arguments(kwargs), clips=False)
    with pytest.raises(InputError, match=words) as caught:
        policy.picture_size(64, 64, part)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"fps": 1}, "mm_processor_kwargs.fps"),
        ({"min_pixels": "4096"}, "mm_processor_kwargs.min_pixels"),
        ({"max_pixels": True}, "mm_processor_kwargs.max_pixels"),
        ({"size": 448}, "mm_processor_kwargs.size"),
        ({"size": {"height": 448}}, "mm_processor_kwargs.size"),
        ({"size": {"longest_edge": 0}}, "mm_processor_kwargs.size.longest_edge"),
        ({"max_pixels": 9, "size": {"longest_edge": 8}}, "mm_processor_kwargs.max_pixels"),
        ({"min_pixels": 9, "size": {"longest_edge": 8}}, "mm_processor_kwargs.size.longest_edge"),
        ({"images_kwargs": {"do_resize": False}}, "mm_processor_kwargs.images_kwargs.do_resize"),
        ({"videos_kwargs": 7}, "mm_processor_kwargs.videos_kwargs"),
    ],
    ids=json.dumps,
)
def test_other_arguments_are_refused_by_name(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        read_processor_arguments(kwargs)
    assert caught.value.field == field


@pytest.mark.parametrize("policy", [QWEN, RELEASED], ids=lambda policy: policy.name)
def test_given_sides_keep_the_shape_within_a_bound(policy: PixelPolicy) -> None:
    """Between its two passes a resize has one side of each: for 8 x 1,048,576 to 6,400 x 32 that is 6.7e9 pixels."""
    sides = {"resized_height": 32, "resized_width": 6400}
    for size in (lambda: policy.picture_size(1_048_576, 8, sides), lambda: policy.clip_size(4, 1_048_576, 8, sides)):
        with pytest.raises(InputError, match=r"within 16 times the picture's own \(8x1048576\)"):
            size()
    assert policy.picture_size(400, 100, {"resized_height": 64, "resized_width": 256}) == (64, 256)


@pytest.mark.parametrize("policy", [QWEN, RELEASED], ids=lambda policy: policy.name)
def test_a_maximum_below_a_pixel_is_the_least_size(policy: PixelPolicy) -> None:
    given = {"min_pixels": 0.01, "max_pixels": 0.1}
    assert policy.clip_size(4, 100, 100, given) == (32, 32)
    assert policy.picture_size(100, 100, given) == (32, 32)
