"""The reference checkpoint: its layout, its prompts, and that it answers what it was not trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.tools.dev.train_reference.batches import patchify
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all, score
from qwen3vl_edge.tools.dev.train_reference.heldout import (
    HELDOUT_SEED,
    HELDOUT_SIZES,
    HeldoutQuestion,
    heldout_questions,
)
from qwen3vl_edge.tools.dev.train_reference.scenes import draw_scene, object_scene
from qwen3vl_edge.tools.parity.end_to_end import Unsplit
from qwen3vl_edge.tools.parity.prompts import read_prompts
from tests.support.http_api.chat import user


@pytest.fixture(scope="module")
def processor(reference: Path) -> Any:
    return AutoProcessor.from_pretrained(reference)


@pytest.fixture(scope="module")
def unsplit(reference: Path) -> Unsplit:
    return Unsplit(open_checkpoint(str(reference)))


def test_layout(reference: Path, processor: Any) -> None:
    assert (reference / "model.safetensors").stat().st_size <= 16 * 2**20
    model = Qwen3VLForConditionalGeneration.from_pretrained(reference)
    assert isinstance(processor, Qwen3VLProcessor)
    assert model.dtype == torch.float16
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size) == (16, 2, 2)
    assert len(vision.deepstack_visual_indexes) == 3
    assert text.rope_parameters["mrope_interleaved"]
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"):
        assert len(processor.tokenizer.encode(token)) == 1
    assert processor.tokenizer.tokenize("4721") == ["4", "7", "2", "1"]


IMAGE, VIDEO = {"type": "image", "image": "a"}, {"type": "video", "video": "a"}
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPTS: list[tuple[str, list[dict[str, Any]], str]] = [
    ("text", [user("Hello!")], "<|im_start|>user\nHello!<|im_end|>\n"),
    ("string", [{"role": "user", "content": "Hello!"}], "<|im_start|>user\nHello!<|im_end|>\n"),
    ("image", [user(IMAGE, "What?")], f"<|im_start|>user\n{SEEN}What?<|im_end|>\n"),
    ("two images", [user(IMAGE, IMAGE, "Same?")], f"<|im_start|>user\n{SEEN}{SEEN}Same?<|im_end|>\n"),
    ("image last", [user("What?", IMAGE)], f"<|im_start|>user\nWhat?{SEEN}<|im_end|>\n"),
    (
        "video",
        [user(VIDEO, "Where?")],
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Where?<|im_end|>\n",
    ),
    (
        "system and turns",
        [
            {"role": "system", "content": "Be brief."},
            user(IMAGE, "A?"),
            {"role": "assistant", "content": "B."},
            user("C?"),
        ],
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{SEEN}A?<|im_end|>\n"
        "<|im_start|>assistant\nB.<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n",
    ),
]


@pytest.mark.parametrize(("messages", "expected"), [case[1:] for case in PROMPTS], ids=[case[0] for case in PROMPTS])
def test_chat_template(processor: Any, messages: list[dict[str, Any]], expected: str) -> None:
    found = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found == expected + "<|im_start|>assistant\n"
    assert processor.apply_chat_template(messages, tokenize=False) == expected


def test_training_patches_are_the_processors(processor: Any) -> None:
    picture = np.asarray(draw_scene(object_scene(random.Random(3), 160, 96, 4)))
    expected = processor.image_processor(Image.fromarray(picture), do_resize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(patchify(np.stack([picture, picture])[None]), expected, atol=1e-6)


def test_heldout_questions_are_balanced_and_reproducible() -> None:
    one, other = heldout_questions(90), heldout_questions(90)
    assert [item.answer for item in one] == [item.answer for item in other]
    assert {item.task for item in one} == set(HELDOUT_SIZES)
    for task, sizes in HELDOUT_SIZES.items():
        assert len(sizes) >= 2
        assert sum(item.task == task for item in one) == 10
    assert [item.answer for item in heldout_questions(90, HELDOUT_SEED + 1)] != [item.answer for item in one]


def test_every_sample_is_answered_rightly(unsplit: Unsplit, samples: Path) -> None:
    lines = [json.loads(line) for line in (samples / "questions.jsonl").read_text().splitlines()]
    prompts = read_prompts(samples / "questions.jsonl")
    asked = [
        HeldoutQuestion(name, line["task"], "", messages, line["answer"])
        for line, (name, messages) in zip(lines, prompts, strict=True)
    ]
    answers = answer_all(unsplit, asked)
    assert len(asked) >= 12
    assert answers == [item.answer for item in asked]


def test_heldout_accuracy(unsplit: Unsplit, reference: Path) -> None:
    """A part of the held-out questions: 90 % right, and no less than the card says, less three standard errors."""
    card = json.loads((reference / "heldout.json").read_text())
    assert card["overall"] >= 0.9
    assert min(card["tasks"].values()) >= 0.8
    questions = heldout_questions(54)
    found = score(questions, answer_all(unsplit, questions)).overall
    expected = card["overall"]
    assert found >= max(0.9, expected - 3 * (expected * (1 - expected) / len(questions)) ** 0.5)
