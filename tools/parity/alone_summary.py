"""What the third side, transformers alone, came to over all prompts: for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3vl_edge.tools.parity.end_to_end import PromptResult


@dataclass(frozen=True)
class AloneSummary:
    """Prompts by what transformers alone made of them.

    Attributes:
        compared: how many; `same` of them have the same input to the bit.
        by_choice: prompts whose input differs by choice alone; `choices` counts each choice, and `same_answers` how
            many of these prompts have the unsplit model's answer nevertheless.
        faults: prompts with a difference that no choice explains, and the difference.
        unread: prompts that transformers did not take, and why.
    """

    compared: int
    same: int
    by_choice: int
    choices: dict[str, int]
    same_answers: int
    faults: tuple[tuple[str, str], ...]
    unread: tuple[tuple[str, str], ...]


def summarize_alone(prompts: Sequence[PromptResult]) -> AloneSummary | None:
    """The summary; None where the third side was not asked."""
    compared = [(item, item.alone) for item in prompts if item.alone is not None]
    if not compared:
        return None
    by_choice = [(item, alone) for item, alone in compared if alone.choices and alone.fault is None]
    faults = tuple((item.name, alone.fault) for item, alone in compared if alone.fault is not None)
    unread = tuple((item.name, alone.unread) for item, alone in compared if alone.unread is not None)
    return AloneSummary(
        compared=len(compared),
        same=len(compared) - len(by_choice) - len(faults) - len(unread),
        by_choice=len(by_choice),
        choices=dict(Counter(choice for _, alone in by_choice for choice in alone.choices)),
        same_answers=sum(alone.ids == item.unsplit_ids for item, alone in by_choice),
        faults=faults,
        unread=unread,
    )
