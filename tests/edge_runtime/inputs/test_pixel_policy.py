"""Under the policy `checkpoint` every path gives the tokens and pixels that AutoProcessor makes of the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.pixels.policy import QWEN_VL_UTILS
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.lean.processor import prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, prepare_prompt
from tests.support.pixel_policies import QWEN_PIXELS, native_policy

RELEASED = {"shortest_edge": 65_536, "longest_edge": 16_777_216}  # as every released Qwen3-VL has them
SMALL = {"shortest_edge": 4096, "longest_edge": 30_000}
CLIPS = {
    "released": {"shortest_edge": 4096, "longest_edge": 25_165_824},
    "small": {"shortest_edge": 60_000, "longest_edge": 90_000},
}
SIZES = ((64, 64), (128, 128), (100, 37), (300, 200), (8, 400), (639, 31), (720, 405))


@pytest.fixture(scope="module", params=["released", "small"])
def model(request: pytest.FixtureRequest, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint's processors with other limits."""
    folder = tmp_path_factory.mktemp(request.param)
    for file in reference.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    write(folder / "preprocessor_config.json", size=RELEASED if request.param == "released" else SMALL)
    write(folder / "video_preprocessor_config.json", size=CLIPS[request.param], cap_pixels_per_frame=None)
    return folder


def write(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def about(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]


def both(messages: list[dict[str, Any]], edge: Edge, policy: Any) -> list[Prompt]:
    assert edge.lean is not None
    return [prepare_prompt(messages, edge.processor, policy), prepare_lean_prompt(messages, edge.lean, policy)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_are_auto_processors(model: Path, edge: Edge, size: tuple[int, int]) -> None:
    """Tokens and pixels, to the bit."""
    messages = about({"type": "image", "image": noise(*size)})
    alone = AutoProcessor.from_pretrained(model).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    for prompt in both(messages, edge, native_policy(model)):
        np.testing.assert_array_equal(prompt.input_ids, alone["input_ids"][0].numpy())
        (item,) = prompt.media
        assert item.grid.as_list() == alone["image_grid_thw"][0].tolist()
        assert item.input.pixel_values.tobytes() == alone["pixel_values"].numpy().tobytes()
        limits = SMALL if "small" in model.name else RELEASED
        assert item.decoding["pixel_policy"] == "checkpoint"
        assert item.decoding["pixel_limits"] == f"{limits['shortest_edge']} to {limits['longest_edge']}"


@pytest.mark.parametrize("frames", [2, 5, 8])
@pytest.mark.parametrize("size", [(48, 64), (160, 120), (320, 180), (20, 90)], ids=str)
def test_clips_are_auto_processors_to_the_bit(model: Path, edge: Edge, frames: int, size: tuple[int, int]) -> None:
    pictures = [noise(*size, seed=index) for index in range(frames)]
    processor = AutoProcessor.from_pretrained(model)
    video = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    expected = processor.video_processor(videos=[video], do_sample_frames=False, return_tensors="pt")
    for prompt in both(about({"type": "video", "video": pictures}), edge, native_policy(model)):
        (item,) = prompt.media
        assert item.grid.as_list() == expected["video_grid_thw"][0].tolist()
        assert item.input.pixel_values.tobytes() == expected["pixel_values_videos"].numpy().tobytes()
        assert item.decoding["pixel_limits"].endswith(f"of all {frames} frames")


def test_a_clips_file_is_auto_processors_to_the_bit(model: Path, edge: Edge, samples: Path) -> None:
    path = samples / "motion.mp4"
    messages = about({"type": "video", "video": str(path)})
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    processor = AutoProcessor.from_pretrained(model).video_processor
    expected = processor(videos=[video], do_sample_frames=False, return_tensors="pt")
    for prompt in both(messages, edge, native_policy(model)):
        (item,) = prompt.media
        assert len(frames) == 2 * item.grid.t  # all of them are sampled
        assert item.grid.as_list() == expected["video_grid_thw"][0].tolist()
        assert item.input.pixel_values.tobytes() == expected["pixel_values_videos"].numpy().tobytes()


def test_the_other_policy_asks_the_checkpoint_nothing(model: Path, edge: Edge) -> None:
    for prompt in both(about({"type": "image", "image": noise(64, 64)}), edge, native_policy(model, QWEN_VL_UTILS)):
        assert prompt.media[0].grid.as_list() == [1, 4, 4]
        assert prompt.media[0].decoding["pixel_policy"] == QWEN_VL_UTILS


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"image": noise(64, 64), "max_pixels": 1000}, "max_pixels"),
        ({"image": noise(9, 2000)}, "image"),
        ({"image": "/nowhere.png"}, "image"),
        ({"video": [noise(64, 64)] * 2, "resized_height": 32, "resized_width": 6400}, "resized_height"),
        ({"video": [noise(64, 64), noise(64, 32)]}, "video"),
    ],
    ids=["below-one-token", "aspect", "no-file", "aspect-of-a-clip", "unequal-frames"],
)
def test_errors_about_a_part_name_its_path(part: dict[str, Any], field: str, edge: Edge) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]
    messages = [{"role": "system", "content": "Look."}, *messages]
    assert edge.lean is not None
    policy = native_policy(name=QWEN_VL_UTILS)
    for prepare in (
        lambda: prepare_prompt(messages, edge.processor, policy),
        lambda: prepare_lean_prompt(messages, edge.lean, policy),
    ):
        with pytest.raises(InputError) as caught:
            prepare()
        assert caught.value.field == f"messages[1].content[1].{field}"


def test_a_requests_limits_are_in_force_and_in_the_evidence(edge: Edge, reference: Path) -> None:
    picture = noise(300, 200)
    messages = about({"type": "image", "image": picture})
    limits = {"shortest_edge": 100_000, "longest_edge": 200_000}
    found = edge.encode(messages, mm_processor_kwargs={"size": limits})
    again = edge.encode(messages, mm_processor_kwargs={"min_pixels": 100_000, "max_pixels": 200_000})
    processor = AutoProcessor.from_pretrained(reference)
    expected = processor.image_processor([picture], size=limits, return_tensors="pt")["image_grid_thw"][0].tolist()
    for encoded in (found, again):
        origin = encoded.request.media[0].origin
        assert origin["native"] == "x".join(map(str, expected))
        assert origin["pixel_policy"] == "checkpoint"
        assert origin["pixel_limits"] == "100000 to 200000"
    part = {"type": "image", "image": picture, "max_pixels": 20_000}
    origin = edge.encode(about(part), mm_processor_kwargs={"size": limits}).request.media[0].origin
    assert origin["pixel_limits"] == "20000 to 20000"  # the part's own goes before
    with pytest.raises(InputError, match="fps") as caught:
        edge.encode(messages, mm_processor_kwargs={"fps": 2})
    assert caught.value.field == "mm_processor_kwargs.fps"


def test_a_size_is_admitted_before_a_picture_has_it(edge: Edge, samples: Path) -> None:
    """Whatever a request says, its visual tokens are counted before anything is resized."""
    for kind, source in (
        ("image", noise(64, 64)),
        ("video", [noise(64, 64)] * 2),
        ("video", str(samples / "motion.mp4")),
    ):
        for policy in (edge.policy, replace(edge.policy, pixels=QWEN_PIXELS)):
            with pytest.raises(LimitError, match="max_visual_tokens"):
                edge.prompt(about({"type": kind, kind: source, "min_pixels": 2**40, "max_pixels": 2**40}), policy)


def test_frames_of_two_sizes_are_refused(edge: Edge) -> None:
    with pytest.raises(InputError, match="more than one size: expected one, got 64x64, 96x64"):
        edge.prepare(about({"type": "video", "video": [noise(64, 64), noise(96, 64)]}))
