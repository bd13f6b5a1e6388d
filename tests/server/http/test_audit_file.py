"""The audit log's file: each line whole or alone, whatever the disk did to the one before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3vl_edge.server.http.audit import AuditLog


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{"number": 1}\n'),
        ('{"number": 0}\n', '{"number": 0}\n{"number": 1}\n'),
        ('{"number": 0}\n{"numb', '{"number": 0}\n{"numb\n{"number": 1}\n'),
    ],
    ids=["new", "whole", "torn"],
)
def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(before)
    AuditLog(path).write({"number": 1})
    assert path.read_text() == after


def test_a_file_that_another_program_cut_is_mended_once_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write({"number": 1})
    path.unlink()
    path.write_text('{"number": 2')
    log.write({"number": 3})
    assert path.read_text() == '{"number": 2\n{"number": 3}\n'


CODE = """
import json, resource, sys
from pathlib import Path
from qwen3vl_edge.server.http.audit import AuditLog
path = Path(sys.argv[1])
log = AuditLog(path)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for number in range(100):
    log.write({"number": number})
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for number in range(100, 103):
    log.write({"number": number})
"""


def test_what_a_full_disk_cut_is_told_and_the_next_line_stands_alone(tmp_path: Path) -> None:
    """A real limit of the kernel's: the write that crosses it is short, those after it fail."""
    path = tmp_path / "audit.jsonl"
    done = subprocess.run([sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = path.read_text().split("\n")
    whole = 1000 // len('{"number": 10}\n')  # ten lines are a byte shorter
    cut = next(index for index, line in enumerate(lines) if not line.endswith("}"))
    assert whole <= cut <= whole + 1
    numbers = [json.loads(line)["number"] for index, line in enumerate(lines) if line and index != cut]
    assert numbers == [*range(cut), 100, 101, 102]
    first, *others = done.stderr.splitlines()
    assert f"only {len(lines[cut])} of" in first
    assert len(others) == 99 - cut
    assert all("File too large" in line for line in others)
