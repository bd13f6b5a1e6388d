"""Sizes that upstream's functions give, and grids that they cannot."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as transformers_resize

from qwen3vl_edge.contract.bundle.grid import Grid, PatchGeometry
from qwen3vl_edge.contract.pixels.smart_resize import smart_resize
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.lean.resize import bucket_image
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy, fetch_media
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.tools.parity.samples import edge_cases
from tests.support.pixel_policies import QWEN_PIXELS

FACTOR = 32


def test_a_narrow_picture_with_a_small_maximum() -> None:
    """qwen-vl-utils gives 0 rows."""
    assert smart_resize(31, 639, FACTOR, 1, 16384) == (32, 576)
    assert smart_resize(639, 31, FACTOR, 1, 16384) == (576, 32)


def test_sizes_are_transformers() -> None:
    """Where no side is so short that transformers rounds it to nothing first."""
    rng = random.Random(3)
    for _ in range(20_000):
        height, width = rng.randint(17, 3000), rng.randint(17, 3000)
        least = rng.randint(1, 10**5)
        most = least + rng.randint(0, 10**6)
        if max(height, width) > 200 * min(height, width):
            continue
        expected = transformers_resize(height, width, FACTOR, least, most)
        assert smart_resize(height, width, FACTOR, least, most) == expected, (height, width, least, most)


def test_a_narrow_picture_is_encoded_on_both_paths(edge: Edge) -> None:
    picture = Image.effect_noise((639, 31), 60).convert("RGB")
    element: dict[str, Any] = {"type": "image", "image": picture, "min_pixels": 1, "max_pixels": 16384}
    policy = BucketPolicy(PatchGeometry(), None, dynamic=True, pixels=QWEN_PIXELS)
    (fetched,) = fetch_media([{"role": "user", "content": [element]}], policy, MediaBudget())
    lean, choice = bucket_image(picture, element, policy, MediaBudget())
    assert choice.grid == fetched.choice.grid == Grid(1, 2, 36)
    assert np.array_equal(np.asarray(fetched.pixels), np.asarray(lean))
    assert np.array_equal(np.asarray(lean), np.asarray(picture.resize((576, 32))))


@pytest.mark.parametrize("bucket", [Grid(1, 2, 2), Grid(1, 2, 4), Grid(1, 4, 2)])
def test_buckets_below_four_visual_tokens(bucket: Grid) -> None:
    geometry = PatchGeometry()
    policy = BucketPolicy(geometry, (bucket,), False, QWEN_PIXELS, max_distortion=9, min_scale=0)
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    height, width = geometry.pixels(bucket)
    element: dict[str, Any] = {"type": "image", "image": picture}
    (fetched,) = fetch_media([{"role": "user", "content": [element]}], policy, MediaBudget())
    lean, choice = bucket_image(picture, element, policy, MediaBudget())
    assert choice.grid == fetched.choice.grid == bucket
    expected = np.asarray(picture.resize((width, height)))
    assert np.array_equal(np.asarray(lean), expected)
    assert np.array_equal(np.asarray(fetched.pixels), expected)
    frames = {"type": "video", "video": [picture] * 2}
    clips = BucketPolicy(geometry, (bucket,), False, QWEN_PIXELS, max_distortion=9, min_scale=0)
    (clip,) = fetch_media([{"role": "user", "content": [frames]}], clips, MediaBudget())
    assert tuple(clip.pixels.shape) == (2, 3, height, width)


def test_parity_has_a_picture_of_every_bucket(edge: Edge) -> None:
    """Of less than four visual tokens too, to which `smart_resize` resizes nothing."""
    small = copy.copy(edge)
    buckets = (Grid(1, 2, 2), Grid(1, 2, 4), Grid(2, 2, 2), Grid(1, 4, 4))
    small.policy = replace(edge.policy, buckets=buckets, dynamic=False)
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    assert [case.grid for case in edge_cases(small, {"noise": picture})] == list(buckets)
