"""The parts keep to themselves: who imports whom, and what is heavy stays out until used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "contract": {"export", "edge_runtime", "server", "calibration", "tools", "torch", "transformers"},
    "export": {"edge_runtime", "server", "tools"},
    "edge_runtime": {"export", "server", "tools"},
    "server": {"export", "edge_runtime", "tools"},
}


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_do_not_import_each_other(part: str) -> None:
    files = list((ROOT / part).rglob("*.py"))
    assert files
    for file in files:
        assert not imports_of(file) & FORBIDDEN[part], file


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["server", "--help"], ["ask", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['qwen3vl-edge', *sys.argv[1:]]\n"
        "from tools.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'fastapi', 'numpy', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
