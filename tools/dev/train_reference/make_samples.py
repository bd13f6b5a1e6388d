"""Sample pictures and clips with their questions, for the demo and the tests.

python -m qwen3vl_edge.tools.dev.train_reference.make_samples --out reference/samples
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.train_reference.clip_files import write_clip
from qwen3vl_edge.tools.dev.train_reference.questions import clip_questions, pair_questions, scene_questions
from qwen3vl_edge.tools.dev.train_reference.scenes import (
    colour_clip,
    draw_scene,
    motion_clip,
    number_scene,
    object_scene,
)

# id, task, height, width, seed of the drawing
PICTURES = (
    ("colour", "colour", 128, 128),
    ("shape", "shape", 160, 128),
    ("count", "count", 128, 160),
    ("where", "where", 160, 160),
    ("relation", "relation", 128, 192),
    ("number", "number", 128, 160),
    ("number-wide", "number", 96, 192),
)
CLIPS = (("motion", "motion", 96, 96), ("motion-wide", "motion", 96, 128), ("first-colour", "first_colour", 96, 96))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    lines = [_picture(out, arguments.seed, *row) for row in PICTURES]
    lines += [_pair(out, arguments.seed, index) for index in (1, 2)]
    lines += [_clip(out, arguments.seed, *row) for row in CLIPS]
    (out / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _line(name: str, task: str, parts: list[dict[str, str]], text: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    return {"id": name, "task": task, "messages": messages, "answer": answer}


def _picture(out: Path, seed: int, name: str, task: str, height: int, width: int) -> dict[str, Any]:
    rng = random.Random(f"sample {seed} {name}")
    while True:
        digits = 4 if name == "number-wide" else 3
        scene = number_scene(rng, width, height, digits) if task == "number" else object_scene(rng, width, height, 4, 3)
        wanted = [item for item in scene_questions(rng, scene) if item.task == task]
        if wanted:
            break
    draw_scene(scene).save(out / f"{name}.png", optimize=True)
    return _line(name, task, [{"type": "image", "image": f"{name}.png"}], wanted[0].text, wanted[0].answer)


def _pair(out: Path, seed: int, index: int) -> dict[str, Any]:
    rng = random.Random(f"sample {seed} pair {index}")
    while True:
        pair = [object_scene(rng, 128, 128, 4 if index == 1 else 1) for _ in range(2)]
        wanted = [item for item in pair_questions(rng, *pair) if ("more" in item.text) == (index == 1)]
        if wanted:
            break
    names = [f"pair-{index}-{letter}.png" for letter in "ab"]
    for scene, name in zip(pair, names, strict=True):
        draw_scene(scene).save(out / name, optimize=True)
    parts = [{"type": "image", "image": name} for name in names]
    return _line(f"pair-{index}", "compare", parts, wanted[0].text, wanted[0].answer)


def _clip(out: Path, seed: int, name: str, task: str, height: int, width: int) -> dict[str, Any]:
    rng = random.Random(f"sample {seed} {name}")
    clip = (motion_clip if task == "motion" else colour_clip)(rng, width, height)
    wanted = [item for item in clip_questions(rng, clip) if item.task == task]
    write_clip(clip, out / f"{name}.mp4")
    return _line(name, task, [{"type": "video", "video": f"{name}.mp4"}], wanted[0].text, wanted[0].answer)


if __name__ == "__main__":
    main()
