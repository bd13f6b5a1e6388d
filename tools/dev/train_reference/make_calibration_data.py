"""Pictures and clips to calibrate the reference checkpoint on, from seeds that nothing else uses.

python -m qwen3vl_edge.tools.dev.train_reference.make_calibration_data --out DIR [--count 256]

writes DIR/messages.jsonl and the pictures and clips that it names; either is what `calibrate --data` takes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.train_reference.heldout import HeldoutQuestion, heldout_questions

CALIBRATION_SEED = 30_000_000


def make_calibration_data(out: Path, count: int, seed: int = CALIBRATION_SEED) -> Path:
    """Write `count` conversations of every task and size; the path of the messages comes back."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [_line(out, question) for question in heldout_questions(count, seed)]
    messages = out / "messages.jsonl"
    messages.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return messages


def _line(out: Path, question: HeldoutQuestion) -> dict[str, Any]:
    content = []
    for index, part in enumerate(question.messages[0]["content"]):
        part = dict(part)
        name = f"{question.id}-{index}"
        if "image" in part:
            part["image"].save(out / f"{name}.png")
            part["image"] = f"{name}.png"
        elif "video" in part:
            shutil.copyfile(part["video"], out / f"{name}.mp4")
            part["video"] = f"{name}.mp4"
        content.append(part)
    return {"id": question.id, "messages": [{"role": "user", "content": content}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args()
    make_calibration_data(arguments.out, arguments.count)


if __name__ == "__main__":
    main()
