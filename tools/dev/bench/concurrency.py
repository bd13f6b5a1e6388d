"""What more requests at a time cost the server: tokens per second and waiting, at 1, 2, 4, … at once.

python -m qwen3vl_edge.tools.dev.bench.concurrency --out docs/reports/benchmarks/concurrency.json

A server with random weights, requests that wait for nobody but their own answer (closed loop), numbers at a time in
another order each round. `tools/dev/bench/growth.py` fits what it finds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.bench.measurement import rotated, write_document
from qwen3vl_edge.tools.dev.load.figures import summarise
from qwen3vl_edge.tools.dev.load.in_process import text_ids
from qwen3vl_edge.tools.dev.load.mix import Mix, make_requests
from qwen3vl_edge.tools.dev.load.model import make_checkpoint
from qwen3vl_edge.tools.dev.load.over_http import binary_body, closed_loop
from qwen3vl_edge.tools.server_process import running_server

LAYERS, WIDTH, TOWER = 6, 512, (4, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", default="1,2,4,8,16")
    parser.add_argument("--each", type=int, default=4, help="requests of each of those at once")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference", type=Path, default=Path("reference/qwen3vl-tiny"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    at_once = [int(text) for text in arguments.at_once.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        model = make_checkpoint(Path(scratch) / "model", arguments.reference, LAYERS, WIDTH, *TOWER)
        rows = measure(model, at_once, arguments.each, arguments.new_tokens, arguments.rounds)
    document = {"rounds": arguments.rounds, "new_tokens": arguments.new_tokens}
    write_document(arguments.out, document | {"model": {"layers": LAYERS, "width": WIDTH}, "rows": rows})
    print(json.dumps(rows, indent=1))


def measure(model: Path, at_once: list[int], each: int, new_tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number at once: medians over rounds."""
    from transformers import AutoTokenizer

    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.server.engines.checkpoint_config import model_shape

    shape, texts = model_shape(open_checkpoint(str(model))), text_ids(AutoTokenizer.from_pretrained(model))
    options: dict[str, Any] = {"max_batch": max(at_once), "max_queue": 1000}
    options |= {"prefix_cache_mib": 0, "hold_embeddings_mib": 0}
    runs_at: dict[int, list[Any]] = {count: [] for count in at_once}
    with running_server(model=str(model), dtype="float32", **options) as server:
        for number in range(-1, rounds):  # one round to warm up
            for count in rotated(at_once, number):
                mix = Mix(count * each, new_tokens, seed=number + 1)
                bodies = [binary_body(request) for request in make_requests(mix, shape, texts)]
                run = closed_loop(server.url, bodies, "binary", count)
                if number >= 0:
                    runs_at[count].append(run)
    return [_row(count, runs) for count, runs in runs_at.items()]


def _row(count: int, runs: list[Any]) -> dict[str, Any]:
    rates = [run.tokens_per_second for run in runs]
    summaries = [summarise(run) for run in runs]
    return {
        "at_once": count,
        "requests": len(runs[0].samples),
        "tokens_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "seconds_per_token": statistics.median(1 / rate for rate in rates),
        "first_token_p50_s": statistics.median(item["first_token_s"]["p50"] for item in summaries),
        "between_tokens_p50_s": statistics.median(item["between_tokens_s"]["p50"] for item in summaries),
    }


if __name__ == "__main__":
    main()
