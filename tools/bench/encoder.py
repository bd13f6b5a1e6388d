"""Encoder backends side by side on this machine: alternating runs in one process, medians, ratios, the roofline.

python -m tools.bench.encoder --bundle BUNDLE --model CHECKPOINT --out docs/benchmarks/encoder.json

Each round runs every candidate, in another order each time, once untimed and then timed: a device encodes picture
after picture, so what another candidate left in the caches, or its threads that still spin, should not count. A
candidate's time is from pixel values in host memory to embeddings in host memory, which is what the device waits
for; on a GPU the copies are in it. Where a candidate can be timed by the GPU's own clock (engines, PyTorch), that
time stands beside it.
A candidate that this machine cannot run is listed with the reason and is not timed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle, open_bundle
from contract.errors import ContractError
from contract.grid import Grid
from contract.precision import PRECISIONS
from edge_runtime.engine import Engine, EngineOptions, load_engine
from tools.bench.candidate import Candidate
from tools.bench.environment import environment
from tools.bench.machine_peak import machine_peak
from tools.bench.roofline import encoder_cost


def candidates(
    bundle: Bundle, model: Path | None, grid: Grid, threads: int
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """What can encode this grid here, by name; and why the others cannot."""
    found: dict[str, Candidate] = {}
    refused: dict[str, str] = {}
    for precision in (item.precision for item in bundle.manifest.precisions):
        for provider in ("cpu", "openvino", "cuda", "tensorrt", "nv-tensorrt-rtx"):
            options = EngineOptions(precision=precision, threads=threads, provider=provider)
            _add(found, refused, f"onnxruntime {provider} {precision}", "onnxruntime", bundle, options, grid)
        for backend in ("openvino", "openvino-bf16"):
            options = EngineOptions(precision=precision, threads=threads)
            _add(found, refused, f"{backend} {precision}", backend, bundle, options, grid)
        for library in ("tensorrt", "tensorrt_rtx"):
            options = EngineOptions(precision=precision)
            _add(found, refused, f"{library} {precision}", library, bundle, options, grid)
    if model is None:
        refused["pytorch"] = "no --model"
    else:
        from tools.bench.pytorch_candidates import pytorch_candidates
        from tools.bench.upstream_candidates import upstream_candidate

        found |= pytorch_candidates(model, grid, threads)
        try:
            found["upstream exporter, onnxruntime cpu fp32"] = upstream_candidate(
                model, bundle.manifest.vision, grid, threads
            )
        except ContractError as error:
            refused["upstream exporter"] = str(error)
    return found, refused


def _add(
    found: dict[str, Candidate],
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
    on_device = getattr(engine, "device_seconds", None)
    found[name] = Candidate(
        lambda pixels: engine.run(grid, pixels), on_device and (lambda pixels: on_device(grid, pixels))
    )


@dataclass
class Measured:
    """Seconds of each round: by the clock on the wall, and by the GPU's where it can tell."""

    wall: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)


def measure(found: dict[str, Candidate], pixels: NDArray[np.float32], rounds: int) -> dict[str, Measured]:
    """Run every candidate in every round."""
    measured = {name: Measured() for name in found}
    for candidate in found.values():
        candidate.run(pixels)  # loads, compiles, allocates
    order = list(found)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for name in order:
            found[name].run(pixels)
            started = time.perf_counter()
            found[name].run(pixels)
            measured[name].wall.append(time.perf_counter() - started)
            if (on_device := found[name].device_seconds) is not None:
                measured[name].device.append(on_device(pixels))
    return measured


def rows_of(bundle: Bundle, grid: Grid, measured: dict[str, Measured], baseline: str) -> list[dict[str, Any]]:
    """Median, spread, ratio to the baseline and to the floor of each candidate."""
    base = statistics.median(measured[baseline].wall)
    rows = []
    for name, seconds in measured.items():
        values = seconds.wall
        half = name.endswith("fp16") or "bf16" in name
        cost = encoder_cost(bundle.manifest.vision, grid, 2 if half else 4)
        quantized = PRECISIONS[name.split()[-1]].quantized if name.split()[-1] in PRECISIONS else None
        peak = machine_peak("float16" if half else "float32")
        median = statistics.median(values)
        rows.append(
            {
                "bucket": str(grid),
                "candidate": name,
                "median_seconds": median,
                "spread": [min(values), max(values)],
                "rounds": len(values),
                "device_median_seconds": statistics.median(seconds.device) if seconds.device else None,
                "times_faster_than_baseline": base / median,
                "flops": cost.flops,
                # The peak of integer products is not measured.
                "floor_seconds": None if quantized else cost.floor(peak.flops_per_second, peak.bytes_per_second),
            }
        )
    return sorted(rows, key=lambda row: row["median_seconds"])


def run(bundle: Path, model: Path | None, rounds: int, threads: int, out: Path | None) -> None:
    """Measure every fixed bucket of the bundle, and write JSON to `out` or stdout."""
    opened = open_bundle(bundle)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    baseline = ""
    for grid in opened.manifest.buckets():
        runnable, refused = candidates(opened, model, grid, threads)
        shape = (grid.patches, opened.manifest.vision.patch_values)
        pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        baseline = next(name for kind in ("upstream", "pytorch", "") for name in runnable if name.startswith(kind))
        found = rows_of(opened, grid, measure(runnable, pixels, rounds), baseline)
        sys.stderr.writelines(f"{grid} {row['candidate']}: {row['median_seconds']:.4f} s\n" for row in found)
        rows += found
    document = {
        "environment": environment(),
        "model": opened.manifest.model.id,
        "baseline": baseline,
        "rows": rows,
        "not_run": refused,
    }
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
