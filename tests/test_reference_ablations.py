"""Each way of getting the split wrong shows on the reference checkpoint: a parity test on it is worth something."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.checkpoint import open_checkpoint
from tools.parity.end_to_end import Unsplit
from tools.train_reference.ablate import ABLATIONS
from tools.train_reference.evaluate import answer_all, score
from tools.train_reference.heldout import HeldoutQuestion, heldout_questions


@pytest.fixture(scope="module")
def unsplit(reference: Path) -> Unsplit:
    return Unsplit(open_checkpoint(str(reference)))


@pytest.fixture(scope="module")
def questions() -> list[HeldoutQuestion]:
    return heldout_questions(54)


@pytest.fixture(scope="module")
def baseline(unsplit: Unsplit, questions: list[HeldoutQuestion]) -> list[str]:
    return answer_all(unsplit, questions)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_answers(
    name: str, unsplit: Unsplit, questions: list[HeldoutQuestion], baseline: list[str]
) -> None:
    with ABLATIONS[name](unsplit):
        answers = answer_all(unsplit, questions)
    changed = sum(a != b for a, b in zip(answers, baseline, strict=True))
    assert changed >= 3
    if name == "DeepStack zeroed":
        assert score(questions, answers).overall < score(questions, baseline).overall - 0.2


def test_without_ablation_nothing_changes(
    unsplit: Unsplit, questions: list[HeldoutQuestion], baseline: list[str]
) -> None:
    for ablation in ABLATIONS.values():
        with ablation(unsplit):
            pass
    assert answer_all(unsplit, questions[:18]) == baseline[:18]
