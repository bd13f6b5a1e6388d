"""Encoder backends side by side on this machine: alternating runs in one process, medians, ratios, the roofline.

python -m tools.bench.encoder --bundle BUNDLE --model CHECKPOINT --out docs/benchmarks/encoder.json

Each round runs every candidate once, in another order each time. A candidate's time is from pixel values in host
memory to embeddings in host memory, which is what the device waits for; on a GPU the copies are in it.
A candidate that this machine cannot run is listed with the reason and is not timed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle, open_bundle
from contract.errors import ContractError
from contract.grid import Grid
from edge_runtime.engine import Engine, EngineOptions, load_engine
from tools.bench.environment import environment
from tools.bench.machine_peak import machine_peak
from tools.bench.roofline import encoder_cost

Run = Callable[[NDArray[np.float32]], object]


def candidates(bundle: Bundle, model: Path | None, grid: Grid, threads: int) -> tuple[dict[str, Run], dict[str, str]]:
    """What can encode this grid here, by name; and why the others cannot."""
    found: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for precision in (item.precision for item in bundle.manifest.precisions):
        for provider in ("cpu", "openvino", "cuda", "tensorrt", "nv-tensorrt-rtx"):
            options = EngineOptions(precision=precision, threads=threads, provider=provider)
            _add(found, refused, f"onnxruntime {provider} {precision}", "onnxruntime", bundle, options, grid)
        for library in ("tensorrt", "tensorrt_rtx"):
            options = EngineOptions(precision=precision)
            _add(found, refused, f"{library} {precision}", library, bundle, options, grid)
    if model is None:
        refused["pytorch"] = "no --model"
    else:
        from tools.bench.pytorch_candidates import pytorch_candidates

        found |= pytorch_candidates(model, grid, threads)
    return found, refused


def _add(
    found: dict[str, Run],
    refused: dict[str, str],
    name: str,
    backend: str,
    bundle: Bundle,
    options: EngineOptions,
    grid: Grid,
) -> None:
    try:
        engine: Engine = load_engine(backend, bundle, options)
        if grid not in engine.serves.buckets:
            raise ContractError(f"it has no bucket {grid}")
    except ContractError as error:
        refused[name] = str(error)
        return
    found[name] = lambda pixels: engine.run(grid, pixels)


def measure(runs: dict[str, Run], pixels: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(pixels)  # loads, compiles, allocates
    order = list(runs)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for name in order:
            started = time.perf_counter()
            runs[name](pixels)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def rows_of(bundle: Bundle, grid: Grid, seconds: dict[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """Median, spread, ratio to the baseline and to the floor of each candidate."""
    base = statistics.median(seconds[baseline])
    rows = []
    for name, values in seconds.items():
        half = name.endswith(("fp16", "bf16")) or " bf16 " in name
        cost = encoder_cost(bundle.manifest.vision, grid, 2 if half else 4)
        peak = machine_peak("float16" if half else "float32")
        median = statistics.median(values)
        rows.append(
            {
                "bucket": str(grid),
                "candidate": name,
                "median_seconds": median,
                "spread": [min(values), max(values)],
                "rounds": len(values),
                "times_faster_than_baseline": base / median,
                "flops": cost.flops,
                "floor_seconds": cost.floor(peak.flops_per_second, peak.bytes_per_second),
            }
        )
    return sorted(rows, key=lambda row: row["median_seconds"])


def run(bundle: Path, model: Path | None, rounds: int, threads: int, out: Path | None) -> None:
    """Measure every fixed bucket of the bundle, and write JSON to `out` or stdout."""
    opened = open_bundle(bundle)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for grid in opened.manifest.buckets():
        runs, refused = candidates(opened, model, grid, threads)
        shape = (grid.patches, opened.manifest.vision.patch_values)
        pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        baseline = next((name for name in runs if name.startswith("pytorch")), next(iter(runs)))
        found = rows_of(opened, grid, measure(runs, pixels, rounds), baseline)
        sys.stderr.writelines(f"{grid} {row['candidate']}: {row['median_seconds']:.4f} s\n" for row in found)
        rows += found
    document = {"environment": environment(), "model": opened.manifest.model.id, "rows": rows, "not_run": refused}
    text = json.dumps(document, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run(arguments.bundle, arguments.model, arguments.rounds, arguments.threads, arguments.out)


if __name__ == "__main__":
    main()
