"""A step's process: it does the step's work, and appends each row to a file as it comes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.gpu.context import Context, reason
from qwen3vl_edge.tools.dev.gpu.steps import STEPS

# Run with `-c`, as whatever can be forked from a process that has imported torch (tests/support/warm_start.py).
CODE = "from qwen3vl_edge.tools.dev.gpu.worker import main; main()"

# Steps that run beside one another, or small encoders on many cores, wait for their own threads most of the time.
THREADS = "4"


def command(step: str, context: Context) -> list[str]:
    """The command line of a step's process."""
    document = {"work": str(context.work), "dry": context.dry, "candidates": context.candidates}
    return [sys.executable, "-c", CODE, step, json.dumps(document)]


def main() -> None:
    """Do the step that the command line names; a failure is its last row, and exit code 1."""
    os.setsid()  # whatever it starts ends with it
    step, document = sys.argv[1], json.loads(sys.argv[2])
    context = Context(Path(document["work"]), document["dry"], document["candidates"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", THREADS)
    os.environ["XDG_CACHE_HOME"] = str(context.work / "cache")  # engines prove themselves anew
    file = context.rows_file(step)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", buffering=1) as rows:

        def report(table: str, row: Mapping[str, Any]) -> None:
            rows.write(json.dumps({"table": table, "row": dict(row)}) + "\n")
            print(step, table, json.dumps(dict(row)), flush=True)

        try:
            STEPS[step].load()(context, report)
        except Exception as error:  # libraries raise what they like, and the other steps go on
            traceback.print_exc()
            report("failures", {"step": step, "reason": reason(error)})
            sys.exit(1)
