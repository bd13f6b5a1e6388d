"""Encoders side by side on this machine: ours and every peer's, alternating, medians, ratios, the floor.

python -m qwen3vl_edge.tools.dev.bench.encoder --bundle BUNDLE --model CHECKPOINT --threads 1,2
    --out docs/reports/benchmarks/encoder.json

A candidate is a process of its own: its load time and its peak memory are its own too. All of a bucket's candidates
are loaded, then run in turn, in another order each round; the others sleep meanwhile. A time is from pixel values in
host memory to embeddings in host memory, which is what the device waits for; on a GPU the copies are in it, and the
GPU's own time stands beside it where it can be had. Exports are written before, untimed. With `--together` fewer
processes than candidates are held at once (memory), each group with the baseline in it.
A candidate that this machine cannot run is listed with the reason and is not timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3vl_edge.tools.dev.bench.encoder.run import Plan, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="0", help="CPU threads, comma separated; 0 for all")
    parser.add_argument("--buckets", default="", help="grids, as 1x32x32, comma separated; all of the bundle's")
    parser.add_argument(
        "--candidates", default="", help="those whose name has one of these (=NAME: is it), semicolon separated"
    )
    parser.add_argument("--together", type=int, default=0, help="processes held at once; 0 for all")
    parser.add_argument("--patience", type=float, default=300, help="seconds to load and encode the first picture")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    plan = Plan(
        bundle=arguments.bundle,
        model=arguments.model,
        rounds=arguments.rounds,
        threads=tuple(int(text) for text in arguments.threads.split(",")),
        buckets=tuple(text for text in arguments.buckets.split(",") if text),
        candidates=tuple(text.strip() for text in arguments.candidates.split(";") if text.strip()),
        together=arguments.together,
        patience=arguments.patience,
    )
    run(plan, arguments.out)


if __name__ == "__main__":
    main()
