"""The step `tests`: every test that needs a GPU, `pytest -m gpu`, a row for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qwen3vl_edge
from qwen3vl_edge.tools.dev.gpu.context import Context, Report

MARK = "pytest.mark.gpu"
NONE_COLLECTED = 5


def run_gpu_tests(context: Context, report: Report) -> None:
    """Run the tests of the files that hold the mark; others may import what this machine lacks.

    Raises:
        RuntimeError: pytest itself failed.
    """
    import pytest

    tests = Path(qwen3vl_edge.__file__).parents[1] / "tests"
    files = sorted(str(file) for file in tests.rglob("test_*.py") if MARK in file.read_text(encoding="utf-8"))
    options = ["-m", "gpu", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", "--rootdir", str(tests)]
    code = int(pytest.main([*options, *files], plugins=[_Rows(report)]))
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"pytest ended with code {code}")


class _Rows:
    """A pytest plug-in that reports each test's outcome."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def pytest_runtest_logreport(self, report: Any) -> None:
        # A test that is skipped or broken by its fixtures has no call.
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            outcome = "error" if report.when == "setup" and report.failed else report.outcome
            row = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 2)}
            if report.when == "call" and report.user_properties:  # of `record_property`
                row["figures"] = dict(report.user_properties)
            if outcome != "passed":
                row["reason"] = _reason(report.longrepr)
            self._report("tests", row)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._report("tests", {"test": report.nodeid, "outcome": "error", "reason": _reason(report.longrepr)})


def _reason(found: Any) -> str:
    """Why a test was skipped, or the end of what it raised; a skip comes with its file, by this machine's path."""
    return str(found[2] if isinstance(found, tuple) else found)[-600:]
