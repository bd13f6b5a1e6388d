"""What a step of the kit gets: sizes and folders; and how it reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = Callable[[str, Mapping[str, Any]], None]
"""Takes a row: the table that it belongs to, and its figures."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        image_buckets, video_buckets: of the encoder bench.
        tower: values that replace those of a released tower.
        layers, width: of the server bench's language model.
        batches: sizes of its batch; new_tokens: of an answer.
        prompt_tokens: of each of its prompts.
        rounds: in which its candidates take turns.
        arrivals_answers, arrivals_prompts, arrivals_tokens: answers under way, long prompts that arrive, their length.
        least_seconds, most_runs: of each measurement.
        prompts: of parity; None for all.
        reference_buckets: of the reference checkpoint's bundle, for parity.
    """

    image_buckets: str = "448x448,1024x1024"
    video_buckets: str = "8x448x448"
    tower: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 28
    width: int = 2048
    batches: tuple[int, ...] = (1, 8, 32)
    new_tokens: int = 48
    prompt_tokens: int = 200
    rounds: int = 2
    arrivals_answers: int = 8
    arrivals_prompts: int = 4
    arrivals_tokens: int = 4000
    least_seconds: float = 0.3
    most_runs: int = 30
    prompts: int | None = None
    reference_buckets: str = "128x128,160x128"


FULL = Sizes()
TOY = Sizes(
    image_buckets="64x64",
    video_buckets="4x64x64",
    tower={
        "depth": 3,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    },
    layers=2,
    width=128,
    batches=(1, 2),
    new_tokens=4,
    prompt_tokens=16,
    rounds=1,
    arrivals_answers=2,
    arrivals_prompts=1,
    arrivals_tokens=100,
    least_seconds=0.01,
    most_runs=3,
    prompts=2,
    reference_buckets="128x128",
)


@dataclass(frozen=True)
class Context:
    """Where and how a step runs.

    Attributes:
        work: folder of exports and rows, shared by the steps of a run.
        dry: on the CPU, with toy sizes.
        candidates: parts of names, comma separated; encoders with none of them are left out.
    """

    work: Path
    dry: bool
    candidates: str = ""

    @property
    def sizes(self) -> Sizes:
        return TOY if self.dry else FULL

    @property
    def device(self) -> str:
        """As torch names it."""
        return "cpu" if self.dry else "cuda"

    @property
    def provider(self) -> str:
        """Of ONNX Runtime."""
        return "cpu" if self.dry else "cuda"

    def rows_file(self, step: str) -> Path:
        """The file that a step's process appends its rows to."""
        return self.work / "rows" / f"{step}.jsonl"

    def rows(self, step: str, table: str) -> list[dict[str, Any]]:
        """What a step has reported so far for a table."""
        return [row for name, row in read_rows(self.rows_file(step)) if name == table]


def read_rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Tables and rows of a file; a line that is still being written is left for the next time."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [(item["table"], item["row"]) for item in map(json.loads, lines)]


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
