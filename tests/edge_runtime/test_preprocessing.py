"""What reaches the encoder: equal to qwen-vl-utils and the HF processor to the bit where the bucket is native."""

from __future__ import annotations

import base64
import io
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils import process_vision_info

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import BucketError, InputError
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.prompt import prepare_prompt
from qwen3vl_edge.tools.dev.train_reference.heldout import clip_part, heldout_questions
from qwen3vl_edge.tools.dev.train_reference.scenes import motion_clip
from tests.support.pixel_policies import QWEN_PIXELS


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


def upstream(edge: Edge, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe of Qwen3-VL's model card: process_vision_info, chat template, processor."""
    hf = edge.processor.hf
    images, videos, kwargs = process_vision_info(
        messages, image_patch_size=16, return_video_kwargs=True, return_video_metadata=True
    )
    tensors, metadata = zip(*videos, strict=True) if videos else (None, None)
    text = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    arguments: dict[str, Any] = {"text": [text], "images": images, "return_tensors": "pt", "do_resize": False}
    if tensors:
        arguments |= {"videos": list(tensors), "video_metadata": list(metadata or ()), **kwargs}
    found: dict[str, Any] = hf(**{key: value for key, value in arguments.items() if value is not None})
    return found


def user(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_image_is_upstreams_to_the_bit_in_every_mode(edge: Edge, mode: str) -> None:
    """Transparent ones as upstream has RGBA, on white: of LA and of palettes it shows what is hidden."""
    image = picture(128, 128, mode)
    messages = user({"type": "image", "image": image}, "What?")
    prompt = prepare_prompt(messages, edge.processor, edge.policy)
    if image.has_transparency_data:
        messages = user({"type": "image", "image": image.convert("RGBA")}, "What?")
    expected = upstream(edge, messages)
    assert prompt.media[0].choice.exact
    assert prompt.media[0].choice.fixed
    np.testing.assert_array_equal(prompt.media[0].input.pixel_values, expected["pixel_values"].numpy())
    np.testing.assert_array_equal(prompt.input_ids, expected["input_ids"][0].numpy())


def test_native_sizes_are_qwen_vl_utils_to_the_bit(edge: Edge) -> None:
    rng = random.Random(5)
    native = replace(edge.policy, buckets=None, dynamic=True, pixels=QWEN_PIXELS)
    for seed in range(25):
        image = picture(rng.randint(30, 300), rng.randint(30, 300), seed=seed)
        messages = user({"type": "image", "image": image}, "What?")
        prompt = prepare_prompt(messages, edge.processor, native)
        np.testing.assert_array_equal(
            prompt.media[0].input.pixel_values, upstream(edge, messages)["pixel_values"].numpy()
        )


def test_heldout_prompts_are_upstreams(edge: Edge) -> None:
    for question in heldout_questions(18):
        prompt = prepare_prompt(question.messages, edge.processor, edge.policy)
        expected = upstream(edge, question.messages)
        np.testing.assert_array_equal(prompt.input_ids, expected["input_ids"][0].numpy())
        ours = np.concatenate([item.input.pixel_values for item in prompt.media])
        theirs = expected["pixel_values" if "pixel_values" in expected else "pixel_values_videos"]
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_mixed_media_keep_prompt_order(edge: Edge) -> None:
    clip = clip_part(motion_clip(random.Random(1), 96, 96))
    parts = [{"type": "image", "image": picture(128, 128)}, clip, {"type": "image", "image": picture(160, 128)}]
    prompt = prepare_prompt(user(*parts, "What?"), edge.processor, edge.policy)
    assert [(item.kind, item.grid) for item in prompt.media] == [
        ("image", Grid(1, 8, 8)),
        ("video", Grid(4, 6, 6)),
        ("image", Grid(1, 8, 10)),
    ]


def test_near_size_goes_to_the_bucket_and_says_so(edge: Edge) -> None:
    encoded = edge.encode(user({"type": "image", "image": picture(192, 196)}, "What?"))
    origin = encoded.request.media[0].origin
    assert origin["native"] == "1x12x12"
    assert encoded.request.media[0].grid == Grid(1, 10, 10)
    assert origin["scale"] == pytest.approx(10 / 12, abs=1e-5)
    assert origin["fixed"]


def test_odd_size_goes_to_the_dynamic_graph(edge: Edge) -> None:
    encoded = edge.encode(user({"type": "image", "image": picture(320, 64)}, "What?"))
    assert encoded.request.media[0].grid == Grid(1, 4, 20)
    assert not encoded.request.media[0].origin["fixed"]


def test_no_bucket_and_no_dynamic_graph_is_refused(edge: Edge) -> None:
    policy = replace(edge.policy, buckets=(Grid(1, 8, 8),), dynamic=False)
    with pytest.raises(BucketError, match="no bucket"):
        prepare_prompt(user({"type": "image", "image": picture(320, 64)}, "What?"), edge.processor, policy)


@pytest.fixture
def web(samples: Path) -> Iterator[str]:
    handler = partial(QuietHandler, directory=str(samples))
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_every_source_gives_the_same_pixels(edge: Edge, samples: Path, web: str) -> None:
    path = samples / "colour.png"
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    sources = [str(path), f"file://{path}", uri, f"{web}/colour.png", Image.open(path)]
    parts = [{"type": "image", "image": source} for source in sources]
    parts.append({"type": "image_url", "image_url": {"url": uri}})
    prompts = [prepare_prompt(user(part, "What?"), edge.processor, edge.policy) for part in parts]
    found = [prompt.media[0].input.pixel_values for prompt in prompts]
    for pixels in found[1:]:
        np.testing.assert_array_equal(pixels, found[0])


def test_clip_file_is_read_with_its_timestamps(edge: Edge, samples: Path) -> None:
    part = {"type": "video", "video": str(samples / "motion.mp4")}
    prompt = prepare_prompt(user(part, "Which way?"), edge.processor, edge.policy)
    assert prompt.media[0].grid == Grid(4, 6, 6)
    text = edge.processor.hf.tokenizer.decode(prompt.input_ids)
    for stamp in ("<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>", "<3.2 seconds>"):
        assert stamp in text


def corrupt_png() -> str:
    buffer = io.BytesIO()
    picture(64, 64).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()[:200]).decode()


BAD_PARTS: list[tuple[str, dict[str, Any], str]] = [
    ("missing file", {"type": "image", "image": "nowhere.png"}, "no such picture: nowhere.png"),
    ("folder", {"type": "image", "image": "."}, "cannot be read"),
    ("not a picture", {"type": "image", "image": __file__}, "not a picture"),
    ("corrupt", {"type": "image", "image": corrupt_png()}, "corrupt"),
    ("not base64", {"type": "image", "image": "data:image/png;base64,%%%"}, "not base64"),
    ("text URI", {"type": "image", "image": "data:text/plain;base64,AAAA"}, "not a picture"),
    ("dead URL", {"type": "image", "image": "http://127.0.0.1:9/a.png"}, "cannot be fetched"),
    ("bad URL", {"type": "image", "image": "http://"}, "cannot be fetched"),
    ("number", {"type": "image", "image": 7}, "not a picture"),
    ("missing clip", {"type": "video", "video": "nowhere.mp4"}, "no such clip"),
    ("not a clip", {"type": "video", "video": __file__}, "is not a clip"),
    ("empty clip", {"type": "video", "video": []}, "no frames"),
    ("thin", {"type": "image", "image": picture(2000, 4)}, "aspect ratio"),
    ("nothing", {"type": "sound"}, "has no content"),
]


@pytest.mark.parametrize(("part", "words"), [case[1:] for case in BAD_PARTS], ids=[case[0] for case in BAD_PARTS])
def test_bad_media_is_named_in_one_line(edge: Edge, part: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare_prompt(user(part, "What?"), edge.processor, edge.policy)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "messages", [[], "text", [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": 5}]]
)
def test_bad_messages_are_named(edge: Edge, messages: Any) -> None:
    with pytest.raises(InputError, match="message"):
        prepare_prompt(messages, edge.processor, edge.policy)
