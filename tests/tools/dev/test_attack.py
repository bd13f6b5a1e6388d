"""Each attack of the table in `docs/guides/server/security.md`, in small: what it is answered, and its memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qwen3vl_edge.tools.dev.attack.measure import measure
from qwen3vl_edge.tools.dev.attack.run import ATTACKS, open_target
from qwen3vl_edge.tools.dev.attack.table import read_bounds
from qwen3vl_edge.tools.dev.attack.target import Target
from tests.support.paths import ROOT

BOUNDS = read_bounds()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of another process is read from /proc: Linux")


def test_the_table_has_a_row_for_each_attack() -> None:
    assert list(BOUNDS) == list(ATTACKS)


class Targets:
    """The last target stays open: the attacks of the table are grouped by their settings."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key: object = None
        self._target: Target | None = None

    def of(self, name: str) -> Target:
        attack = ATTACKS[name]
        if self._target is None or self._key != (attack.against, attack.settings):
            self.close()
            self._key = (attack.against, attack.settings)
            opened = open_target(attack.against, ROOT / "reference" / "qwen3vl-tiny", attack.settings)
            self._target = self._stack.enter_context(opened)
        return self._target

    def close(self) -> None:
        self._stack.close()
        self._target = None


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    opened = Targets()
    yield opened
    opened.close()


@pytest.mark.parametrize("name", BOUNDS)
def test_an_attack_costs_no_more_than_the_table_says(name: str, targets: Targets) -> None:
    cost = measure(ATTACKS[name], targets.of(name), times=2, at_once=1, wait=False)
    assert set(cost.statuses) <= BOUNDS[name].statuses, cost
    assert sum(cost.statuses.values()) >= 2, cost
    assert cost.peak_mib <= BOUNDS[name].mib, cost
    assert cost.failures == 0, cost
    assert cost.answers > 0, cost
