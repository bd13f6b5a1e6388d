"""Held-out accuracy of the released checkpoint, through transformers' own classes and the edge's preprocessing.

python -m qwen3vl_edge.tools.dev.train_reference.evaluate --model reference/qwen3vl-tiny [--count 500] [--json]
python -m qwen3vl_edge.tools.dev.train_reference.evaluate --model reference/qwen3vl-tiny --bundle BUNDLE
    --precision int8

The second form asks the split: a bundle's graphs encode, fp16 embeddings travel, the language model answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import PatchGeometry
from qwen3vl_edge.contract.pixels.from_checkpoint import read_pixel_policy
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.tools.dev.train_reference.heldout import HeldoutQuestion, heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Split, Unsplit, open_both

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Scores:
    """Share of right answers, 0 to 1; `sizes` are keyed "task height x width"."""

    overall: float
    tasks: dict[str, float]
    sizes: dict[str, float]
    count: int


def answer_all(
    unsplit: Unsplit, questions: Sequence[HeldoutQuestion], progress: Callable[[int], None] = lambda done: None
) -> list[str]:
    """The unsplit model's greedy answers."""
    answers = []
    native = BucketPolicy(PatchGeometry(), buckets=None, dynamic=True, pixels=read_pixel_policy(unsplit.folder))
    for index, question in enumerate(questions):
        inputs = unsplit.inputs(question.messages, native)
        output = unsplit.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        tail = output[0, inputs["input_ids"].shape[1] :]
        answers.append(unsplit.processor.hf.decode(tail, skip_special_tokens=True))
        progress(index + 1)
    return answers


def answer_all_split(
    split: Split, questions: Sequence[HeldoutQuestion], progress: Callable[[int], None] = lambda done: None
) -> list[str]:
    """The split's greedy answers, through the wire format and the server's own input building."""
    answers = []
    for index, question in enumerate(questions):
        inputs, _, _ = split.inputs(question.messages, Sampling(max_new_tokens=MAX_NEW_TOKENS))
        ids = split.greedy(inputs, MAX_NEW_TOKENS)
        answers.append(split.loaded.tokenizer.decode(ids, skip_special_tokens=True))
        progress(index + 1)
    return answers


def score(questions: Sequence[HeldoutQuestion], answers: Sequence[str]) -> Scores:
    """Exact match per task and per size."""
    tasks: dict[str, list[bool]] = defaultdict(list)
    sizes: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        right = answer == question.answer
        tasks[question.task].append(right)
        sizes[f"{question.task} {question.size}"].append(right)
    every = [right for found in tasks.values() for right in found]
    return Scores(
        _mean(every), {k: _mean(v) for k, v in tasks.items()}, {k: _mean(v) for k, v in sizes.items()}, len(every)
    )


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def progress_on_stderr(total: int) -> Callable[[int], None]:
    """Writes a counter that stays on one line."""

    def show(done: int) -> None:
        sys.stderr.write(f"\r{done}/{total}" + ("\n" if done == total else ""))
        sys.stderr.flush()

    return show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--precision")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    questions = heldout_questions(arguments.count)
    started = time.perf_counter()
    show = progress_on_stderr(len(questions))
    if arguments.bundle is None:
        answers = answer_all(Unsplit(open_checkpoint(str(arguments.model))), questions, show)
    else:
        with open_edge(
            arguments.bundle, EdgeOptions(backend_options=BackendOptions(precision=arguments.precision))
        ) as edge:
            answers = answer_all_split(open_both(edge, arguments.model)[0], questions, show)
    scores = score(questions, answers)
    document: dict[str, Any] = {
        "overall": scores.overall,
        "tasks": scores.tasks,
        "sizes": scores.sizes,
        "count": scores.count,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if arguments.json:
        document["wrong"] = [
            {"id": question.id, "answer": answer, "expected": question.answer}
            for question, answer in zip(questions, answers, strict=True)
            if answer != question.answer
        ]
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    for name, value in {"overall": scores.overall, **scores.tasks, **scores.sizes}.items():
        sys.stdout.write(f"{name:24} {value:6.1%}\n")


if __name__ == "__main__":
    main()
