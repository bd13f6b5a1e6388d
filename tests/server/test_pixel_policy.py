"""A server with pixels resizes as its policy says: by default as the unsplit model's own processor does, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers import AutoImageProcessor

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import LimitError
from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, QWEN_VL_UTILS
from qwen3vl_edge.contract.pixels.processor_arguments import read_processor_arguments
from qwen3vl_edge.server.engines.transformers.vision_tower import VisionTower, load_vision_tower

LIMITS = {"released": (65_536, 16_777_216), "small": (4096, 30_000)}
LOADED = cast(Any, SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"), attention="sdpa"))


@pytest.fixture(scope="module", params=list(LIMITS))
def model(request: pytest.FixtureRequest, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(reference, tmp_path_factory.mktemp("models") / request.param))
    file = folder / "preprocessor_config.json"
    least, most = LIMITS[request.param]
    size = {"size": {"shortest_edge": least, "longest_edge": most}}
    file.write_text(json.dumps(json.loads(file.read_text()) | size))
    return folder


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def embedded(tower: VisionTower, picture: Image.Image, kwargs: dict[str, Any] | None = None, **given: Any) -> Any:
    policy = tower.policy.with_arguments(read_processor_arguments(kwargs), clips=False)
    return tower.encode(lambda: picture, lambda grid: None, policy, given)


def expected(tower: VisionTower, inputs: Any) -> Any:
    with torch.inference_mode():
        return tower._encoder(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output.numpy()


def test_the_checkpoints_limits_are_the_processors(model: Path) -> None:
    tower = load_vision_tower(open_checkpoint(str(model)), LOADED, CHECKPOINT)
    processor = AutoImageProcessor.from_pretrained(model)
    for picture in (noise(64, 64), noise(100, 37), noise(300, 200), noise(639, 31)):
        inputs = processor([picture], return_tensors="pt")
        np.testing.assert_array_equal(embedded(tower, picture).embeds, expected(tower, inputs))
        size = {"shortest_edge": 20_000, "longest_edge": 40_000}
        inputs = processor([picture], size=size, return_tensors="pt")
        np.testing.assert_array_equal(embedded(tower, picture, {"size": size}).embeds, expected(tower, inputs))


def test_a_size_is_checked_before_the_picture_has_it(model: Path) -> None:
    """A request's least of a terapixel is refused by its visual tokens, and not by the memory."""
    tower = load_vision_tower(open_checkpoint(str(model)), LOADED, CHECKPOINT)

    def check(grid: Grid) -> None:
        raise LimitError(f"{grid.patches} patches")

    for given in ({"min_pixels": 2**40}, {"resized_height": 2**20, "resized_width": 2**20}):
        with pytest.raises(LimitError, match="patches"):
            tower.encode(lambda: noise(64, 64), check, tower.policy, given)


def test_the_other_policy_is_qwen_vl_utils(model: Path) -> None:
    tower = load_vision_tower(open_checkpoint(str(model)), LOADED, QWEN_VL_UTILS)
    processor = AutoImageProcessor.from_pretrained(model)
    for given in ({}, {"max_pixels": 9000}, {"resized_height": 90, "resized_width": 64}):
        picture = noise(200, 120)
        resized = fetch_image({"image": picture, **given}, image_patch_size=16)
        inputs = processor([resized], do_resize=False, return_tensors="pt")
        np.testing.assert_array_equal(embedded(tower, picture, **given).embeds, expected(tower, inputs))
