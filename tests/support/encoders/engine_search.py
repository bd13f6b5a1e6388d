"""The search over random towers in a process of its own, in which no library has started its threads.

python -m tests.support.encoders.engine_search unmended '{"hidden_size": 64}'   one tower, as older exports wrote it
python -m tests.support.encoders.engine_search mended 2 3                          towers of these indexes

Prints the runs and findings as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.support.paths import ROOT


def search_in_a_process(*arguments: str) -> dict[str, Any]:
    """What the search prints."""
    command = [sys.executable, "-m", "tests.support.encoders.engine_search", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    from qwen3vl_edge.contract.bundle.grid import Grid
    from qwen3vl_edge.edge_runtime.backends import openvino
    from qwen3vl_edge.tools.dev.engines import run
    from qwen3vl_edge.tools.dev.engines.towers import draw_tower
    from tests.support.encoders.older_attention import write_older_attention

    mode, *towers = sys.argv[1:]
    indexes = [int(item) for item in towers if item.isdigit()]
    patch = pytest.MonkeyPatch()
    if mode == "unmended":
        write_older_attention(patch)
        patch.setattr(openvino, "breaks_when_fused", lambda vision, graph: False)
    if not indexes:
        drawn = draw_tower(1, 0)
        one = replace(
            drawn,
            vision=drawn.vision | json.loads(towers[0]),
            precisions=("fp32",),
            fixed=(Grid(1, 2, 4),),
            free=(),
        )
        patch.setattr(run, "draw_tower", lambda seed, index: one)
        indexes = [0]
    runs, findings = run.search(1, indexes)
    print(json.dumps({"runs": [asdict(item) for item in runs], "findings": [asdict(item) for item in findings]}))


if __name__ == "__main__":
    main()
