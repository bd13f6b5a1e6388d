"""The command line, without importing torch again: in the test's own process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass

from qwen3vl_edge.tools import server_process
from qwen3vl_edge.tools.cli.main import main


@dataclass(frozen=True)
class Finished:
    """What a process would have left."""

    returncode: int
    stdout: str
    stderr: str


def run_process(*arguments: object) -> Finished:
    """Run `qwen3vl-edge ARGUMENTS` in a process of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-m", "qwen3vl_edge", *map(str, arguments)]
        code = server_process.start_process(command, stdout=out, stderr=err).wait()
        for file in (out, err):
            file.seek(0)
        return Finished(code, out.read().decode(), err.read().decode())


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
