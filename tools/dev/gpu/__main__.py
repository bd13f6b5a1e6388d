"""All that needs a GPU, in one command and five minutes: correctness, the encoder bench, the server bench.

python -m qwen3vl_edge.tools.dev.gpu --out gpu-results [--steps environment,parity] [--seconds 300]

Takes no network: torch, and the packages of the extras `export`, `edge` and `server`. Each step is a process of its
own with a time limit, and OUT/gpu.json is written anew with every figure, so that a run that is cut short keeps what
it has; what the steps print goes to OUT/gpu.log. The JSON goes to docs/reports/benchmarks as it is, as
gpu-MACHINE.json. `--dry` does the same on a CPU with toy sizes, which shows that the kit works and measures nothing.
The exit code is 1 where a step failed, a test failed, or parity does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.tools.dev.gpu.run import run
from qwen3vl_edge.tools.dev.gpu.steps import STEPS, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.log")
    parser.add_argument("--work", type=Path, help="folder of exports, kept; a temporary one by default")
    parser.add_argument("--steps", default="", help=f"of {', '.join(STEPS)}; all by default")
    parser.add_argument("--candidates", default="", help="encoders whose name has one of these, comma separated")
    parser.add_argument("--seconds", type=float, default=300, help="limit of the whole run")
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    arguments = parser.parse_args()
    try:
        steps = chosen(arguments.steps)
        with tempfile.TemporaryDirectory(prefix="qwen3vl-gpu-") as scratch:
            work = arguments.work or Path(scratch)
            passed = run(steps, arguments.out, work, arguments.seconds, arguments.dry, arguments.candidates)
    except ContractError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
