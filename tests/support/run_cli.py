"""The command line inside the test's own process: its entry point and arguments, without importing torch again."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass

from qwen3vl_edge.tools.cli.main import main


@dataclass(frozen=True)
class Finished:
    """What a process would have left."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: object) -> Finished:
    """Run `qwen3vl-edge ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    before, sys.argv = sys.argv, ["qwen3vl-edge", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.argv = before
    return Finished(code if isinstance(code, int) else 0 if code is None else 1, out.getvalue(), err.getvalue())
