"""Photographs and camera clips, without torch and with it: the same patches to the bit, as transformers has them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils.vision_process import fetch_image, fetch_video

from qwen3vl_edge.contract.wire.packing import PACKINGS, pack, unpack
from qwen3vl_edge.edge_runtime.edge import Edge
from tests.contract.wire.test_packing import ERRORS
from tests.edge_runtime.lean.test_clips import asked, same_on_both
from tests.support.photographs import photographs, real_clips
from tests.support.pixel_policies import QWEN_PIXELS

LIMITS = {"min_pixels": 4096, "max_pixels": 400_000}


def test_every_photograph(edge: Edge) -> None:
    native = replace(edge.policy, buckets=None, pixels=QWEN_PIXELS)
    for path in photographs():
        picture = {"type": "image", "image": str(path)}
        same_on_both(edge, asked(picture), edge.policy)
        lean, _ = same_on_both(edge, asked({**picture, **LIMITS}), native)
        resized = fetch_image({"image": Image.open(path), **LIMITS}, 16)  # the reference's own loading
        values = edge.processor.hf.image_processor(images=[resized], do_resize=False)["pixel_values"]
        assert np.array_equal(lean.media[0].input.pixel_values, np.asarray(values)), path.name


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {"quality": 60}), ("JPEG", {"progressive": True}), ("WEBP", {"quality": 70}), ("PNG", {})],
)
def test_a_photograph_as_phones_and_pages_send_it(edge: Edge, form: str, options: dict[str, Any]) -> None:
    """Cut to real aspect ratios, and saved."""
    native = replace(edge.policy, buckets=None, pixels=QWEN_PIXELS)
    whole = Image.open(next(path for path in photographs() if path.name == "motorcycle_left.png"))
    for width, height in ((640, 480), (480, 270), (700, 300), (300, 480)):
        buffer = io.BytesIO()
        whole.crop((20, 10, min(20 + width, whole.width), min(10 + height, whole.height))).save(buffer, form, **options)
        same_on_both(edge, asked({"type": "image", "image": Image.open(buffer), **LIMITS}), native)


@pytest.mark.parametrize("number", [0, 1])
def test_a_real_clip(edge: Edge, number: int) -> None:
    native = replace(edge.policy, buckets=None, pixels=QWEN_PIXELS)
    options = {"nframes": 6, "min_pixels": 4096, "max_pixels": 60_000}
    path = str(real_clips()[number])
    lean, reference = same_on_both(edge, asked({"type": "video", "video": path, **options}), native)
    assert (lean.media[0].decoding["reader"], reference.media[0].decoding["reader"]) == ("pyav", "decord")
    expected = fetch_video({"video": path, **options}, 16)
    hf = edge.processor.hf.video_processor
    values = hf(videos=[expected], do_resize=False, do_sample_frames=False, return_metadata=False)
    assert np.array_equal(lean.media[0].input.pixel_values, np.asarray(values["pixel_values_videos"]))


def test_packed_embeddings_of_photographs(edge: Edge) -> None:
    """Within what each packing's steps explain, of values that nothing drawn has."""
    parts = [{"type": "image", "image": str(path), **LIMITS} for path in photographs()[::3]]
    parts.append(
        {"type": "video", "video": str(real_clips()[0]), "nframes": 4, "min_pixels": 4096, "max_pixels": 60_000}
    )
    media = edge.encode(asked(*parts)).request.media
    assert len(media) == len(parts)
    for item in media:
        for level in (item.embeds, *item.deepstack):
            values = np.asarray(level, np.float16)
            for name, packing in PACKINGS.items():
                blocks = (len(values), -1, packing.group or values.shape[1])
                exact = values.astype(np.float64).reshape(blocks)
                error = np.abs(unpack(pack(values, packing)).astype(np.float64).reshape(blocks) - exact)
                largest = np.abs(exact).max(axis=2, keepdims=True)
                assert (error <= ERRORS[name] * largest).all(), name
