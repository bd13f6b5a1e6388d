"""Held-out questions: seeds that neither training nor validation uses, as messages in Qwen's format."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.tools.dev.train_reference.clip_files import temporary_clip
from qwen3vl_edge.tools.dev.train_reference.questions import Question, clip_questions, pair_questions, scene_questions
from qwen3vl_edge.tools.dev.train_reference.scenes import (
    Clip,
    Scene,
    colour_clip,
    draw_scene,
    motion_clip,
    number_scene,
    object_scene,
)
from qwen3vl_edge.tools.dev.train_reference.sizes import VISION_DEFAULTS

HELDOUT_SEED = 20_000_000
Message = dict[str, Any]
# Each task at two or more buckets.
HELDOUT_SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "colour": ((128, 128), (160, 128), (128, 192)),
    "shape": ((128, 128), (160, 128), (128, 192)),
    "count": ((128, 128), (128, 160), (160, 160)),
    "where": ((128, 128), (160, 160), (128, 192)),
    "relation": ((128, 128), (160, 160), (192, 128)),
    "number": ((128, 160), (128, 192), (160, 160)),
    "compare": ((128, 128), (96, 128)),
    "motion": ((96, 96), (96, 128)),
    "first_colour": ((96, 96), (96, 128)),
}


@dataclass(frozen=True)
class HeldoutQuestion:
    """One question: its conversation so far, and the only right answer.

    Attributes:
        task: what it counts for.
        size: "128x160", height x width of its pictures.
        messages: pictures as PIL images, clips as paths of MP4 files.
    """

    id: str
    task: str
    size: str
    messages: list[Message]
    answer: str


def heldout_questions(count: int, seed: int = HELDOUT_SEED) -> list[HeldoutQuestion]:
    """`count` single-turn questions, the tasks and their sizes in turn."""
    tasks = list(HELDOUT_SIZES)
    found = []
    for index in range(count):
        task = tasks[index % len(tasks)]
        sizes = HELDOUT_SIZES[task]
        height, width = sizes[index // len(tasks) % len(sizes)]
        rng = random.Random(f"heldout {seed} {index}")
        parts, question = _ask(rng, task, height, width)
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}]
        found.append(HeldoutQuestion(f"{task}-{index}", task, f"{height}x{width}", messages, question.answer))
    return found


def _ask(rng: random.Random, task: str, height: int, width: int) -> tuple[list[Message], Question]:
    """Draw until a question of the task comes up."""
    while True:
        if task in ("motion", "first_colour"):
            clip = (motion_clip if task == "motion" else colour_clip)(rng, width, height)
            parts, questions = [clip_part(clip)], clip_questions(rng, clip)
        elif task == "compare":
            pair = [object_scene(rng, width, height, rng.choice((1, 4))) for _ in range(2)]
            parts, questions = [image_part(scene) for scene in pair], pair_questions(rng, *pair)
        else:
            scene = _scene(rng, task, height, width)
            parts, questions = [image_part(scene)], scene_questions(rng, scene)
        wanted = [item for item in questions if item.task == task]
        if wanted:
            return parts, wanted[0]


def _scene(rng: random.Random, task: str, height: int, width: int) -> Scene:
    if task == "number":
        return number_scene(rng, width, height, rng.randint(1, 4))
    return object_scene(rng, width, height, 5)


def image_part(scene: Scene) -> Message:
    """An image in Qwen's format, at its own size."""
    return {"type": "image", "image": draw_scene(scene), **VISION_DEFAULTS["image"]}


def clip_part(clip: Clip) -> Message:
    """A clip in Qwen's format, as an MP4 file at its own size."""
    name = hashlib.sha256(repr(clip).encode()).hexdigest()[:24]
    return {"type": "video", "video": str(temporary_clip(clip, name)), **VISION_DEFAULTS["video"]}


PROMPT_KINDS = ("one image", "several images", "video", "image and video", "multi-turn", "text only")


def mixed_prompts(count: int, seed: int = HELDOUT_SEED) -> list[HeldoutQuestion]:
    """Prompts of every structure that the wire carries, in turn; for parity, so `answer` may be empty."""
    found = []
    for index in range(count):
        kind = PROMPT_KINDS[index % len(PROMPT_KINDS)]
        rng = random.Random(f"mixed {seed} {index}")
        messages, size = _conversation(rng, kind)
        found.append(HeldoutQuestion(f"{kind.replace(' ', '-')}-{index}", kind, size, messages, ""))
    return found


def _conversation(rng: random.Random, kind: str) -> tuple[list[Message], str]:
    if kind == "text only":
        words = rng.choice(("How many objects are there?", "Hello!", "What colour is the circle?", "Read the number."))
        return [{"role": "user", "content": f"{words} ({rng.randint(0, 999)})"}], "none"
    task = {"video": rng.choice(("motion", "first_colour")), "several images": "compare"}.get(kind)
    task = task or rng.choice(("colour", "shape", "count", "where", "relation", "number"))
    height, width = rng.choice(HELDOUT_SIZES[task])
    parts, question = _ask(rng, task, height, width)
    if kind == "several images" and rng.random() < 0.5:
        parts.append(image_part(object_scene(rng, 160, 96, 3)))  # a third one, of another size
    if kind == "image and video":
        clip = clip_part(motion_clip(rng, 96, 96))
        parts = [*parts, clip] if rng.random() < 0.5 else [clip, *parts]
    messages: list[Message] = [{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}]
    if kind == "multi-turn":
        second, follow_up = _ask(rng, "colour", 128, 128)
        content: list[Message] = [*(second if rng.random() < 0.5 else []), {"type": "text", "text": follow_up.text}]
        messages += [{"role": "assistant", "content": question.answer}, {"role": "user", "content": content}]
    return messages, f"{height}x{width}"
