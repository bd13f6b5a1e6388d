"""CPU threads: the setting, then the environment, then the library."""

from __future__ import annotations

import pytest

from qwen3vl_edge.contract.machine.cpu_threads import VARIABLE, cpu_threads


@pytest.mark.parametrize(
    ("said", "wanted", "expected"),
    [("", 0, 0), ("3", 0, 3), ("3", 2, 2), ("4,2", 0, 4), ("many", 0, 0), ("-1", 0, 0), ("²", 0, 0)],
)
def test_the_setting_then_the_variable(monkeypatch: pytest.MonkeyPatch, said: str, wanted: int, expected: int) -> None:
    monkeypatch.setenv(VARIABLE, said)
    assert cpu_threads(wanted) == expected
