"""What the checkpoint loses when a part of the split is done wrong: proof that a parity test on it notices.

python -m qwen3vl_edge.tools.dev.train_reference.ablate --model reference/qwen3vl-tiny [--count 180]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all, progress_on_stderr, score
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Unsplit

Ablation = Callable[[Any], Any]


@contextmanager
def deepstack_without(unsplit: Unsplit, levels: tuple[int, ...]) -> Iterator[None]:
    """The model with these DeepStack levels zeroed."""
    visual = unsplit.model.model.visual
    original = visual.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        features = output.deepstack_features
        output.deepstack_features = [f * 0 if index in levels else f for index, f in enumerate(features)]
        return output

    visual.forward = forward
    try:
        yield
    finally:
        del visual.forward


@contextmanager
def rope_changed(unsplit: Unsplit, change: Callable[[Any], Any]) -> Iterator[None]:
    """The model whose M-RoPE positions of visual tokens, int64 [3, n], pass through `change` first."""
    inner = unsplit.model.model
    original = inner.get_rope_index

    def get_rope_index(input_ids: Any, mm_token_type_ids: Any, *args: Any, **kwargs: Any) -> Any:
        positions, deltas = original(input_ids, mm_token_type_ids, *args, **kwargs)
        visual = mm_token_type_ids[0] > 0
        positions[:, 0, visual] = change(positions[:, 0, visual])
        return positions, deltas

    inner.get_rope_index = get_rope_index
    try:
        yield
    finally:
        del inner.get_rope_index


def swap_height_width(positions: Any) -> Any:
    """Rows where columns should be."""
    return positions[[0, 2, 1]]


def shuffle_height_width(positions: Any) -> Any:
    """Height and width positions permuted among the visual tokens, the same way for the same count."""
    import torch

    order = torch.randperm(positions.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = positions.clone()
    shuffled[1:] = positions[1:, order]
    return shuffled


def flatten_height_width(positions: Any) -> Any:
    """Every visual token at the place of the first: what a server without M-RoPE does, roughly."""
    return positions[:, :1].expand_as(positions)


ABLATIONS: dict[str, Ablation] = {
    "DeepStack zeroed": lambda unsplit: deepstack_without(unsplit, (0, 1, 2)),
    "DeepStack level 0 dropped": lambda unsplit: deepstack_without(unsplit, (0,)),
    "DeepStack level 1 dropped": lambda unsplit: deepstack_without(unsplit, (1,)),
    "DeepStack level 2 dropped": lambda unsplit: deepstack_without(unsplit, (2,)),
    "M-RoPE height and width swapped": lambda unsplit: rope_changed(unsplit, swap_height_width),
    "M-RoPE height and width shuffled": lambda unsplit: rope_changed(unsplit, shuffle_height_width),
    "M-RoPE positions all equal": lambda unsplit: rope_changed(unsplit, flatten_height_width),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=180)
    arguments = parser.parse_args()
    unsplit = Unsplit(open_checkpoint(str(arguments.model)))
    questions = heldout_questions(arguments.count)
    baseline = answer_all(unsplit, questions, progress_on_stderr(len(questions)))
    rows = {"none": {"accuracy": score(questions, baseline).overall, "changed": 0.0}}
    for name, ablation in ABLATIONS.items():
        with ablation(unsplit):
            answers = answer_all(unsplit, questions, progress_on_stderr(len(questions)))
        changed = sum(a != b for a, b in zip(answers, baseline, strict=True)) / len(questions)
        rows[name] = {"accuracy": score(questions, answers).overall, "changed": changed}
        sys.stderr.write(f"{name}: {rows[name]}\n")
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
