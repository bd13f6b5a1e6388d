"""A short run of the coverage-guided fuzzer, and that it would see a fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RUNS = 8000


def run(tmp_path: Path, code: str, runs: int = RUNS) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("atheris", reason="atheris has wheels for x86-64 Linux and Python 3.11 to 3.13")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    command += ["--runs", str(runs), "--model", str(ROOT / "reference" / "qwen3vl-tiny")]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("runs", [RUNS, pytest.param(100_000, marks=pytest.mark.slow)])
def test_nothing_but_contract_errors(tmp_path: Path, runs: int) -> None:
    done = run(tmp_path, "from qwen3vl_edge.tools.dev.fuzz.decoders import main; main()", runs)
    assert done.returncode == 0, done.stderr[-3000:]
    ended = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)  # libFuzzer runs some inputs again at the end
    assert ended is not None, done.stderr[-3000:]
    assert int(ended[1]) >= runs


def test_another_error_ends_the_run(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "from qwen3vl_edge.tools.dev.fuzz import decoders as it\n"
        "it.decoders = lambda shape: [lambda data: 1 // 0]; it.main()",
    )
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr + done.stdout
    assert list(tmp_path.glob("crash-*"))
