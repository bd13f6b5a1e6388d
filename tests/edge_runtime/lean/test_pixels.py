"""What the lean path hands the engine is what the reference hands it, to the bit, for every mode, size and file."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils import vision_process
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize

from qwen3vl_edge.contract.bundle.manifest import Preprocessing
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.pixels.smart_resize import smart_resize
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.lean.patches import normalised_bytes
from qwen3vl_edge.edge_runtime.inputs.lean.processor import LeanProcessor, prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, prepare_prompt
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import measure_picture
from tests.support.pixel_policies import QWEN_PIXELS

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F")
# Formats, and the modes that Pillow writes in them.
FILES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
EXIF_ORIENTATION = 0x0112
CASES = 150


def drawn(rng: random.Random, mode: str, width: int, height: int) -> Image.Image:
    """Noise of that mode, palettes with transparency at times."""
    values = np.random.default_rng(rng.getrandbits(32))
    if mode == "I;16":
        return Image.fromarray(values.integers(0, 2**16, (height, width), dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(values.integers(-300, 70_000, (height, width), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(values.uniform(-50, 400, (height, width)).astype(np.float32))
    image = Image.fromarray(values.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode in ("P", "PA"):
        image = image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        if mode == "P" and rng.random() < 0.5:
            image.info["transparency"] = rng.choice([3, bytes(values.integers(0, 256, 256, dtype=np.uint8))])
        return image if mode == "P" else image.convert("PA")
    if mode in ("HSV", "LAB", "YCbCr", "CMYK"):
        return Image.frombytes(mode, image.size, values.bytes(width * height * len(Image.new(mode, (1, 1)).getbands())))
    return image if mode == "RGBA" else image.convert(mode)


def size(rng: random.Random) -> tuple[int, int]:
    """Mostly small; sides of one pixel, extreme aspects (some beyond 200) and a few large ones among them."""
    kind = rng.random()
    if kind < 0.1:
        sides = (1, rng.randint(1, 230))
    elif kind < 0.2:
        sides = (rng.randint(2, 8), rng.randint(200, 900))
    elif kind < 0.21:
        sides = (rng.randint(600, 1200), rng.randint(600, 1200))
    else:
        sides = (rng.randint(1, 230), rng.randint(1, 230))
    return sides if rng.random() < 0.5 else sides[::-1]


def in_a_file(rng: random.Random, image: Image.Image, form: str) -> Image.Image:
    """Written and read again, as the edge reads files; with an EXIF orientation at times."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if form in ("PNG", "JPEG", "TIFF", "WEBP") and rng.random() < 0.5:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = rng.randint(1, 8)
        options["exif"] = exif
    if form == "GIF" and isinstance(image.info.get("transparency"), bytes):  # GIF has one transparent colour
        image.info["transparency"] = 3
    image.save(buffer, form, **options)
    try:
        Image.open(buffer).load()
    except OSError:  # Pillow below 13 calls some of its own TIFF files truncated
        return image
    return measure_picture(buffer.getvalue(), form).decode()


def case(seed: int) -> tuple[str, dict[str, Any]]:
    """A name and a part of a message."""
    rng = random.Random(seed)
    form = rng.choice([None, *FILES])
    mode = rng.choice(MODES if form is None else FILES[form])
    image = drawn(rng, mode, *size(rng))
    if form is not None:
        image = in_a_file(rng, image, form)
    part: dict[str, Any] = {"type": "image", "image": image}
    if (kind := rng.random()) < 0.1:
        part |= {"min_pixels": rng.randint(1, 9000), "max_pixels": rng.randint(5000, 200_000)}
    elif kind < 0.2:
        part |= {"resized_height": rng.randint(1, 300), "resized_width": rng.randint(1, 300)}
    elif kind < 0.25:
        part["max_pixels"] = rng.randint(1024, 90_000)
    return f"{seed}: {form} {mode} {image.size} { {k: v for k, v in part.items() if k != 'image'} }", part


def lean_of(edge: Edge) -> LeanProcessor:
    assert edge.lean is not None
    return edge.lean


def prepared(prepare: Any, part: dict[str, Any], processor: Any, policy: BucketPolicy) -> Prompt | None:
    """The prompt, None where it is refused."""
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    try:
        found: Prompt = prepare(messages, processor, policy)
    except ContractError as caught:
        refusal = str(caught)
    else:
        return found
    assert refusal
    assert "\n" not in refusal
    return None


@pytest.mark.parametrize("seeds", [range(CASES), pytest.param(range(CASES, 1000), marks=pytest.mark.slow)])
def test_pictures_reach_the_engine_as_the_reference_has_them(edge: Edge, seeds: range) -> None:
    native = replace(edge.policy, buckets=None, dynamic=True)
    other = replace(native, pixels=QWEN_PIXELS)
    served = refused = resized = 0
    for seed in seeds:
        name, part = case(seed)
        policy = (native, edge.policy, other)[seed % 3]
        lean = prepared(prepare_lean_prompt, part, lean_of(edge), policy)
        reference = prepared(prepare_prompt, part, edge.processor, policy)
        assert (lean is None) == (reference is None), name
        if lean is None or reference is None:
            refused += 1
            continue
        served += 1
        one, same = lean.media[0], reference.media[0]
        assert one.choice == same.choice, name
        assert one.input.pixel_values.dtype == same.input.pixel_values.dtype
        assert one.input.pixel_values.tobytes() == same.input.pixel_values.tobytes(), name
        assert lean.text == reference.text.replace("<|image_pad|>", "<|image_pad|>" * (one.grid.patches // 4))
        np.testing.assert_array_equal(lean.input_ids, reference.input_ids, name)
        resized += not one.choice.exact
    assert served > 0.9 * len(seeds)
    assert min(refused, resized) > 0.025 * len(seeds)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_converted_as_upstream_does(edge: Edge, mode: str) -> None:
    part = {"type": "image", "image": drawn(random.Random(1), mode, 97, 131)}
    lean = prepared(prepare_lean_prompt, part, lean_of(edge), edge.policy)
    reference = prepared(prepare_prompt, part, edge.processor, edge.policy)
    assert lean is not None
    assert reference is not None
    np.testing.assert_array_equal(lean.media[0].input.pixel_values, reference.media[0].input.pixel_values)


def test_smart_resize_is_upstreams(edge: Edge) -> None:
    rng = random.Random(7)
    for _ in range(20_000):
        height, width = (int(10 ** rng.uniform(0, 4.3)) for _ in range(2))
        limits = {"min_pixels": rng.choice([None, rng.randint(1, 10**6)]), "max_pixels": rng.choice([None, 10**6])}
        found: list[Any] = []
        for native_size in (smart_resize, vision_process.smart_resize):
            try:
                found.append(native_size(height, width, 32, **limits))
            except (ValueError, AssertionError):
                found.append("refused")
        if 0 in tuple(found[1]):  # tests/edge_runtime/inputs/test_smart_resize.py
            assert found[0] == tuple(max(side, 32) for side in found[1])
        else:
            assert found[0] == found[1], (height, width, limits)


def test_every_byte_is_normalised_as_the_hf_processor_does(edge: Edge) -> None:
    hf = edge.processor.hf.image_processor
    import torch

    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]  # [3, 1, 256]
    for mean, std, factor in (
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 1 / 255),
        ((0.1, 0.7, 0.3), (0.21, 0.5, 1.0), 0.00392156862745098),
    ):
        expected = hf.rescale_and_normalize(every[None], True, factor, True, mean, std)[0, :, 0].numpy()
        assert normalised_bytes(Preprocessing(mean, std, factor)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_uint8_graphs_get_the_references_bytes_and_agree(bundle: Path, edge: Edge, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs an x86-64 machine with openvino")
    options = EdgeOptions(backend, BackendOptions(precision="fp32"), "fp32", preprocess="lean-uint8")
    rng = random.Random(3)
    with open_edge(bundle, options) as pixels:
        for grid in pixels.policy.buckets or ():
            if grid.t > 1:
                continue
            height, width = pixels.policy.geometry.pixels(grid)
            image = drawn(rng, "RGBA", width + 3, height - 2)
            messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
            item = pixels.prepare(messages).prompt.media[0]
            from_upstream = resize(
                pil_to_tensor(vision_process.to_rgb(image)), [height, width], InterpolationMode.BICUBIC, antialias=True
            )
            assert item.input.pixels is not None
            np.testing.assert_array_equal(item.input.pixels, from_upstream.permute(1, 2, 0).numpy())
            one, other = pixels.encode(messages).request.media[0], edge.encode(messages).request.media[0]
            assert (one.origin["input"], other.origin["input"]) == ("uint8", "patches")
            for a, b in zip((one.embeds, *one.deepstack), (other.embeds, *other.deepstack), strict=True):
                assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)  # the bundle's own tolerance for fp32


def test_uint8_and_patches_share_no_cache_entry(bundle: Path, samples: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": str(samples / "colour.png")}]}]
    cached = {}
    for preprocess in ("reference", "lean", "lean-uint8", "auto"):
        options = EdgeOptions(cache=tmp_path, preprocess=preprocess)
        with open_edge(bundle, options) as opened:
            cached[preprocess] = opened.encode(messages).request.media[0].origin.get("cached", False)
    assert cached == {"reference": False, "lean": True, "lean-uint8": False, "auto": True}
