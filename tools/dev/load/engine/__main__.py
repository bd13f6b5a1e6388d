"""The server's engine against `generate`, a step by hand, vLLM and the floor, in one run with alternating rounds.

python -m qwen3vl_edge.tools.dev.load.engine --out docs/reports/benchmarks/engine-cpu.json
    [--device cuda --dtype bfloat16 --layers 28 --width 2048 --head 128 --batches 1 8 32 --prompt-tokens 200
     --new-tokens 48 --long-prompts 4 --long-tokens 4000]

A model with random weights is made (--layers, --width). Every candidate gets the same prompts and gives answers of the
same length; the first run of each is not counted. The defaults are those of a CPU with two cores, and take minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.tools.dev.bench.measurement import rewrite_document
from qwen3vl_edge.tools.dev.load.engine.bench import ARRIVALS, CANDIDATES, Plan, bench_engine
from qwen3vl_edge.tools.dev.load.engine.engines import HTTP
from qwen3vl_edge.tools.dev.load.engine.generate import COMPILED

TOWER = (2, 128)  # layers and width of the vision encoder, which nothing here loads


def main() -> None:
    """Measure, print, write; with every row, so that a run that is cut short keeps what it has."""
    arguments = _arguments()
    names = ("layers", "width", "head", "dtype", "device", "threads", "prompt_tokens", "new_tokens", "rounds")
    rows: list[Mapping[str, Any]] = []
    document = {"environment": environment(), **{name: getattr(arguments, name) for name in names}, "server": rows}

    def report(_: str, row: Mapping[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        rewrite_document(arguments.out, document)

    with tempfile.TemporaryDirectory() as scratch:
        _measure(arguments, Path(scratch), report)


def _measure(arguments: argparse.Namespace, scratch: Path, report: Any) -> None:
    import torch

    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
    from qwen3vl_edge.server.options import ServerOptions
    from qwen3vl_edge.tools.dev.bench.machine_peak import bytes_per_second
    from qwen3vl_edge.tools.dev.load.engine.arrivals import Arrivals
    from qwen3vl_edge.tools.dev.load.model import make_checkpoint

    torch.set_num_threads(arguments.threads)
    size = (arguments.layers, arguments.width, *TOWER, arguments.head, arguments.dtype, arguments.device)
    folder = make_checkpoint(scratch / "model", arguments.reference, *size)
    options = ServerOptions(model=str(folder), device_map=arguments.device, dtype=arguments.dtype)
    arrivals = Arrivals(prompts=arguments.long_prompts, prompt_tokens=arguments.long_tokens)
    plan = Plan(
        candidates=arguments.candidates,
        batches=arguments.batches,
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        rounds=arguments.rounds,
        arrivals=arrivals if arguments.long_prompts else None,
        bytes_per_second=bytes_per_second(torch.device(arguments.device)),
        threads=arguments.threads,
        vllm_python=arguments.vllm_python,
    )
    bench_engine(load_language_model(open_checkpoint(str(folder)), options), folder, plan, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=Path("reference/qwen3vl-tiny"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--head", type=int, default=64, help="width of a head")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    default = [name for name in CANDIDATES if name not in (COMPILED, HTTP)]
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=default, help="engine among them")
    parser.add_argument("--long-prompts", type=int, default=2, help=f"of the row “{ARRIVALS}”; 0 for none")
    parser.add_argument("--long-tokens", type=int, default=1000)
    parser.add_argument("--vllm-python", default="", help="of an environment with vLLM; this one by default")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
