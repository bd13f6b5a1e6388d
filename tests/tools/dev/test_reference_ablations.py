"""Each way of getting the split wrong shows on the reference checkpoint: a parity test on it is worth something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import PatchGeometry
from qwen3vl_edge.contract.pixels.from_checkpoint import read_pixel_policy
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.tools.dev.train_reference.ablate import ABLATIONS
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all, score
from qwen3vl_edge.tools.dev.train_reference.heldout import HeldoutQuestion, heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Unsplit


@pytest.fixture(scope="module")
def unsplit(reference: Path) -> Unsplit:
    return Unsplit(open_checkpoint(str(reference)))


@pytest.fixture(scope="module")
def questions() -> list[HeldoutQuestion]:
    return heldout_questions(27)


@pytest.fixture(scope="module")
def inputs(unsplit: Unsplit, questions: list[HeldoutQuestion]) -> list[dict[str, Any]]:
    native = BucketPolicy(PatchGeometry(), buckets=None, dynamic=True, pixels=read_pixel_policy(unsplit.folder))
    return [unsplit.inputs(item.messages, native) for item in questions]


def last_logits(unsplit: Unsplit, inputs: list[dict[str, Any]]) -> torch.Tensor:
    """Logits of the first answer token: [questions, vocabulary]."""
    with torch.inference_mode():
        return torch.stack([unsplit.model(**item, logits_to_keep=1).logits[0, -1] for item in inputs])


@pytest.fixture(scope="module")
def baseline(unsplit: Unsplit, inputs: list[dict[str, Any]]) -> torch.Tensor:
    return last_logits(unsplit, inputs)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_moves_the_logits(
    name: str, unsplit: Unsplit, inputs: list[dict[str, Any]], baseline: torch.Tensor
) -> None:
    """By far more than the parity tests allow, on every kind of question."""
    with ABLATIONS[name](unsplit):
        changed = last_logits(unsplit, inputs)
    moved = (changed - baseline).abs().amax(-1)
    # Swapping height and width leaves square pictures with one visual token in place; most have more.
    assert (moved > 0.01).float().mean() > 0.5
    assert torch.equal(last_logits(unsplit, inputs[:3]), baseline[:3])


@pytest.fixture(scope="module")
def answers(unsplit: Unsplit, questions: list[HeldoutQuestion]) -> list[str]:
    return answer_all(unsplit, questions)


# Swapping leaves square pictures and single objects in their rows; that one shows in the logits above. The checkpoint
# stays the same between releases, so all but one wait for one.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "DeepStack level 1 dropped" else [pytest.mark.slow])
        for name in ABLATIONS
        if "swapped" not in name
    ],
)
def test_ablation_costs_answers(
    name: str, unsplit: Unsplit, questions: list[HeldoutQuestion], answers: list[str]
) -> None:
    """Each alone, one DeepStack level too: answers change, and fewer of them are right."""
    with ABLATIONS[name](unsplit):
        after = answer_all(unsplit, questions)
    assert sum(a != b for a, b in zip(after, answers, strict=True)) >= 3
    assert score(questions, after).overall < score(questions, answers).overall
