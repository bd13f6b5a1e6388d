"""The third side: what transformers alone makes of the same files, and why it differs where it does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, QWEN_VL_UTILS
from qwen3vl_edge.edge_runtime.inputs.messages import Message
from qwen3vl_edge.edge_runtime.inputs.prompt import load_processor, prepare_prompt
from qwen3vl_edge.tools.dev.train_reference.heldout import PROMPT_KINDS, mixed_prompts
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.gate import default_gate, judge
from qwen3vl_edge.tools.parity.pictures import draw_picture
from qwen3vl_edge.tools.parity.transformers_alone import (
    OPTIONS,
    PIXEL_FORMAT,
    PIXEL_LIMITS,
    RESAMPLING,
    Alone,
    AloneProcessor,
    compare_alone,
)
from tests.support.pixel_policies import native_policy

ANSWER = (1, 2, 3)


def about(*pictures: Any, **options: Any) -> list[Message]:
    parts = [{"type": "image", "image": picture, **options} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def compared(
    model: Path, messages: list[Message], loaded: list[Message] | None = None, pixel_policy: str = CHECKPOINT
) -> Alone:
    """The comparison of a conversation; with `loaded`, the unsplit model was given that one."""
    policy = native_policy(model, pixel_policy)
    unsplit = prepare_prompt(loaded or messages, load_processor(model), policy).inputs
    resizes_bytes = policy.pixels.resizes_bytes
    return compare_alone(AloneProcessor(model), messages, unsplit, lambda _: ANSWER, resizes_bytes=resizes_bytes)


def test_every_kind_of_prompt_has_the_same_input_to_the_bit(reference: Path) -> None:
    alone, processor = AloneProcessor(reference), load_processor(reference)
    for item in mixed_prompts(2 * len(PROMPT_KINDS)):
        unsplit = prepare_prompt(item.messages, processor, native_policy()).inputs
        found = compare_alone(alone, item.messages, unsplit, lambda _: ANSWER, resizes_bytes=True)
        assert found == Alone(), item.id


def test_what_was_resized_is_a_choice_and_is_asked(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    draw_picture(0).resize((150, 170)).save(path)
    one, other = about(str(path)), about(f"file://{path}")
    assert compared(reference, one, pixel_policy=QWEN_VL_UTILS) == Alone((RESAMPLING,), ids=ANSWER)
    assert compared(reference, other, pixel_policy=QWEN_VL_UTILS).choices == (RESAMPLING,)


def test_under_the_checkpoints_policy_resizing_is_transformers_to_the_bit(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    for size in ((150, 170), (900, 700), (40, 50)):
        draw_picture(0).resize(size).save(path)
        assert compared(reference, about(str(path))) == Alone(), size


def test_pixel_limits_are_a_choice(reference: Path, tmp_path: Path) -> None:
    """Every released Qwen3-VL says 65,536 at least, of which qwen-vl-utils knows nothing."""
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    file = model / "preprocessor_config.json"
    limits = {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}
    file.write_text(json.dumps(json.loads(file.read_text()) | limits))
    small = about(draw_picture(0).resize((128, 128)))
    assert compared(model, small, pixel_policy=QWEN_VL_UTILS) == Alone((PIXEL_LIMITS,), ids=ANSWER)
    assert compared(model, small) == Alone()
    assert compared(model, about(draw_picture(0).resize((256, 256)))) == Alone()
    unsplit = prepare_prompt(small, load_processor(model), native_policy(model, QWEN_VL_UTILS)).inputs
    found = compare_alone(AloneProcessor(model), small, unsplit, lambda _: ANSWER, resizes_bytes=True)
    assert found.fault == "a picture has another size than the checkpoint's processor gives it"


def test_options_of_a_message_are_a_choice(reference: Path) -> None:
    found = compared(reference, about(draw_picture(0).resize((256, 256)), max_pixels=128 * 128))
    assert found.choices == (OPTIONS,)


@pytest.mark.parametrize("wrong", [ImageOps.mirror, ImageOps.invert], ids=["mirrored", "inverted"])
def test_a_picture_read_otherwise_is_a_fault(reference: Path, wrong: Any) -> None:
    """Both other sides would have shared it, and agreed."""
    picture = draw_picture(0).convert("RGB").resize((150, 170), Image.Resampling.BICUBIC)
    found = compared(reference, about(picture), about(wrong(picture)))
    assert found.fault is not None
    assert "not as transformers loads it" in found.fault
    assert found.ids is None
    prompt = PromptResult("a", True, ANSWER, ANSWER, "x", "x", None, (0.0,), 10, found)
    failed = [row for row in judge(default_gate("fp32", "fp32"), [], [prompt], None) if not row.passed]
    assert [row.what for row in failed] == ["transformers alone"]
    assert not [
        row for row in judge(default_gate("fp32", "fp32"), [], [replace(prompt, alone=Alone())], None) if not row.passed
    ]


def test_a_pixel_format_excuses_its_own_picture_alone(reference: Path) -> None:
    """A transparent picture differs by choice; the opaque one beside it has no such excuse."""
    opaque = draw_picture(0).convert("RGB").resize((150, 170), Image.Resampling.BICUBIC)
    transparent = draw_picture(1).resize((128, 128)).convert("RGBA")
    transparent.putalpha(128)
    found = compared(reference, about(transparent, opaque))
    assert found.fault is None
    assert PIXEL_FORMAT in found.choices
    assert found.ids == ANSWER
    found = compared(reference, about(transparent, opaque), about(transparent, ImageOps.mirror(opaque)))
    assert found.fault is not None
    assert found.fault.startswith("picture 2 is not as transformers loads it")
    assert found.ids is None


def test_what_transformers_cannot_read_is_told(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture = draw_picture(0).resize((128, 128))
    picture.save(path)
    messages, loaded = about(str(path)), about(picture)
    unsplit = prepare_prompt(loaded, load_processor(reference), native_policy()).inputs
    path.write_bytes(b"no picture")
    found = compare_alone(AloneProcessor(reference), messages, unsplit, lambda _: ANSWER, resizes_bytes=True)
    assert found.unread
    assert (found.fault, found.choices) == (None, ())
