"""A fleet against one server, beside the engine alone, the unsplit model and JSON.

python -m qwen3vl_edge.tools.dev.load.run --reference reference/qwen3vl-tiny --out docs/reports/benchmarks/server.json

A model with random weights is made (--layers, --width; or name one with --model). Each round runs, in alternating
order: the server with the binary wire, the same engine in a process without HTTP, the server with JSON lists of
numbers, and the unsplit model from pixels, one request at a time. The devices run on the server's machine and use its
cores too. Figures are medians of the rounds; ratios are of runs within one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.bench.measurement import rotated, write_document
from qwen3vl_edge.tools.dev.load.figures import Run, summarise
from qwen3vl_edge.tools.dev.load.in_process import Setup, engine_without_http, text_ids, unsplit_model
from qwen3vl_edge.tools.dev.load.mix import Mix, make_requests
from qwen3vl_edge.tools.dev.load.model import make_checkpoint
from qwen3vl_edge.tools.dev.load.over_http import Network, binary_body, closed_loop, json_body, open_loop
from qwen3vl_edge.tools.server_process import running_server

CANDIDATES = ("http", "engine", "json", "unsplit")


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or make_checkpoint(
            Path(scratch), arguments.reference, arguments.layers, arguments.width, *arguments.tower
        )
        document = _measure(arguments, model)
    write_document(arguments.out, document)
    print(json.dumps(document["ratios"], indent=1))


def _measure(arguments: argparse.Namespace, model: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.server.engines.checkpoint_config import model_shape

    setup = Setup(model, arguments.max_batch, arguments.threads)
    shape, texts = model_shape(open_checkpoint(str(model))), text_ids(AutoTokenizer.from_pretrained(model))
    mix = Mix(arguments.requests, arguments.new_tokens)
    network = Network(arguments.uplink_mbit, arguments.rtt_ms / 1000)
    with ExitStack() as stack:
        server = stack.enter_context(
            running_server(
                threads=setup.threads,
                model=str(model),
                dtype="float32",
                max_batch=setup.max_batch,
                max_queue=10_000,
                max_connections=12_000,
                max_connections_per_address=12_000,
                prefix_cache_mib=0,
                hold_embeddings_mib=0,
            )
        )
        engine = stack.enter_context(engine_without_http(setup))
        unsplit = stack.enter_context(unsplit_model(setup))

        def http(mix: Mix, encode: Callable[[Any], bytes], kind: str) -> Run:
            bodies = [encode(request) for request in make_requests(mix, shape, texts)]
            return closed_loop(server.url, bodies, kind, arguments.devices, network)

        candidates: dict[str, Callable[[Mix], Run]] = {
            "http": lambda mix: http(mix, binary_body, "binary"),
            "engine": lambda mix: engine.run(mix, arguments.devices),
            "json": lambda mix: http(mix, json_body, "json"),
            "unsplit": lambda mix: unsplit.run(mix, 1),
        }
        rounds = _rounds({name: candidates[name] for name in arguments.candidates}, mix, arguments.rounds)
        document = {
            "model": _describe(model, shape.hidden_size),
            "devices": arguments.devices,
            "max_batch": setup.max_batch,
            "threads": setup.threads,
            "network": {"uplink_mbit": network.uplink_mbit, "rtt_ms": arguments.rtt_ms},
            "rounds": arguments.rounds,
            "candidates": {name: _median_of([summarise(run) for run in runs]) for name, runs in rounds.items()},
            "ratios": {f"{name} / engine": _ratio(rounds[name], rounds["engine"]) for name in rounds},
            "spread": {f"{name} / engine": _ratios(rounds[name], rounds["engine"]) for name in rounds},
        }
        if arguments.rate_shares:
            document["open_loop"] = _open_loops(document, arguments, server.url, mix, shape, texts, network)
    return document


def _rounds(candidates: dict[str, Callable[[Mix], Run]], mix: Mix, count: int) -> dict[str, list[Run]]:
    runs_of: dict[str, list[Run]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(count):
        for name in rotated(names, number):
            runs_of[name].append(candidates[name](replace(mix, seed=number)))
            print(f"round {number}: {name} {runs_of[name][-1].tokens_per_second:.1f} tokens/s", flush=True)
    return runs_of


def _ratio(runs: list[Run], base: list[Run]) -> float:
    """Tokens per second against the base's, the median of the rounds."""
    return round(statistics.median(_ratios(runs, base)), 4)


def _ratios(runs: list[Run], base: list[Run]) -> list[float]:
    """The same, round by round."""
    pairs = zip(runs, base, strict=True)
    return [round(run.tokens_per_second / other.tokens_per_second, 4) for run, other in pairs]


def _median_of(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Figure by figure."""
    merged: dict[str, Any] = {}
    for name, value in summaries[0].items():
        values = [summary[name] for summary in summaries]
        if isinstance(value, dict):
            merged[name] = (
                _median_of(values) if value and all(item.keys() == value.keys() for item in values) else value
            )
        else:
            merged[name] = round(statistics.median(values), 4)
    return merged


def _open_loops(
    document: dict[str, Any],
    arguments: argparse.Namespace,
    url: str,
    mix: Mix,
    shape: Any,
    texts: range,
    network: Network,
) -> list[dict[str, Any]]:
    """Arrivals at shares of what the closed loop answered per second."""
    most = document["candidates"]["http"]["requests_per_second"]
    rows = []
    for number, share in enumerate(arguments.rate_shares):
        bodies = [binary_body(request) for request in make_requests(replace(mix, seed=100 + number), shape, texts)]
        run = open_loop(url, bodies, "binary", share * most, number, network)
        rows.append({"share": share, "arrivals_per_second": round(share * most, 3), **summarise(run)})
        print(f"open loop at {share:.0%}: {rows[-1]['first_token_s']}", flush=True)
    return rows


def _describe(model: Path, width: int) -> dict[str, Any]:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    text, vision = config["text_config"], config["vision_config"]
    return {
        "layers": text["num_hidden_layers"],
        "width": width,
        "tower_layers": vision["depth"],
        "tower_width": vision["hidden_size"],
        "dtype": "float32",
        "bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=Path("reference/qwen3vl-tiny"))
    parser.add_argument("--model", type=Path, help="a checkpoint folder in place of a made one")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tower", type=int, nargs=2, default=(12, 768), help="layers and width of the vision encoder")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24, help="per run")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES, help="with engine among them"
    )
    parser.add_argument("--uplink-mbit", type=float, default=0.0)
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument(
        "--rate-shares", type=float, nargs="*", default=[0.5, 0.8, 1.2], help="of the closed loop's rate"
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
