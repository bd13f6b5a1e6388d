"""Each attack of the table in `docs/guides/server/security.md`, in small: what it is answered, and its memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_edge.tools.dev.attack.attack import volley
from qwen3vl_edge.tools.dev.attack.measure import Cost, measure
from qwen3vl_edge.tools.dev.attack.media import MOST_PICTURES, pictures_in_4k
from qwen3vl_edge.tools.dev.attack.open_target import Models, open_target
from qwen3vl_edge.tools.dev.attack.run import ATTACKS
from qwen3vl_edge.tools.dev.attack.table import read_bounds
from qwen3vl_edge.tools.dev.attack.target import Target

BOUNDS = read_bounds()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of another process is read from /proc: Linux")


def test_the_table_has_a_row_for_each_attack() -> None:
    assert list(BOUNDS) == list(ATTACKS)


class Targets:
    """The last target stays open: the attacks of the table are grouped by their settings."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._stack = ExitStack()
        self._key: object = None
        self._target: Target | None = None

    def of(self, name: str) -> Target:
        attack = ATTACKS[name]
        if self._target is None or self._key != (attack.against, attack.settings):
            self.close()
            self._key = (attack.against, attack.settings)
            opened = open_target(attack.against, self._models, attack.settings)
            self._target = self._stack.enter_context(opened)
        return self._target

    def close(self) -> None:
        self._stack.close()
        self._target = None


@pytest.fixture(scope="module")
def targets(reference: Path, bundle: Path) -> Iterator[Targets]:
    opened = Targets(Models(reference, bundle))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "most-pictures" else []) for name in BOUNDS]
)
def test_an_attack_costs_no_more_than_the_table_says(name: str, targets: Targets) -> None:
    times = 1 if ATTACKS[name].admitted else 2
    check(measure(ATTACKS[name], targets.of(name), times=times, at_once=1, wait=False), times, BOUNDS[name].mib)


def test_a_quarter_of_the_most_pictures_costs_a_quarter(targets: Targets) -> None:
    """All of them are asked for once per release."""
    attack = replace(ATTACKS["most-pictures"], send=volley(pictures_in_4k(MOST_PICTURES // 4)))
    cost = measure(attack, targets.of(attack.name), times=1, at_once=1, wait=False)
    check(cost, 1, BOUNDS[attack.name].mib / 4)


def check(cost: Cost, times: int, mib: float) -> None:
    assert set(cost.statuses) <= BOUNDS[cost.name].statuses, cost
    assert sum(cost.statuses.values()) >= times, cost
    assert cost.peak_mib <= mib, cost
    assert cost.failures == 0, cost
    assert cost.answers > 0, cost
    assert not cost.disagreements, cost
