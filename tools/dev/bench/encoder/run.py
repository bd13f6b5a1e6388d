"""The bench itself: which candidates run, in what order, and what is written of each."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Peer, Setting
from qwen3vl_edge.tools.dev.bench.encoder.peers import all_peers
from qwen3vl_edge.tools.dev.bench.encoder.process import Process, prepare, start
from qwen3vl_edge.tools.dev.bench.machine_peak import machine_peaks
from qwen3vl_edge.tools.dev.bench.measurement import write_document
from qwen3vl_edge.tools.dev.bench.roofline import EncoderCost, encoder_cost

BASELINES = ("upstream onnx, onnxruntime fp32", "pytorch fp32")
# A run this short feels that it slept while the others ran (its memory was put away), and gets an untimed one first.
SHORT_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What to measure; see `python -m qwen3vl_edge.tools.dev.bench.encoder --help`."""

    bundle: Path
    model: Path | None
    rounds: int
    threads: tuple[int, ...]
    buckets: tuple[str, ...]
    candidates: tuple[str, ...]
    together: int
    patience: float


def run(plan: Plan, out: Path) -> None:
    """Measure, and write the document after each bucket, so that an interrupted bench keeps what it has."""
    bundle = open_bundle(plan.bundle)
    grids = [Grid.parse(text) for text in plan.buckets] or list(bundle.manifest.buckets())
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    peaks = {threads: machine_peaks(threads) for threads in plan.threads}
    with tempfile.TemporaryDirectory(prefix="qwen3vl-encoder-bench-") as folder:
        for grid in grids:
            for threads in plan.threads:
                rows += _bucket(plan, bundle, grid, threads, peaks[threads], Path(folder), refused)
                document = {"model": bundle.manifest.model.id, "peaks": peaks, "rows": rows, "not_run": refused}
                write_document(out, document)


def _bucket(
    plan: Plan, bundle: Bundle, grid: Grid, threads: int, peaks: dict[str, float], folder: Path, refused: dict[str, str]
) -> list[dict[str, Any]]:
    wanted = [
        peer
        for peer in all_peers(bundle, plan.model is not None)
        if peer.name not in refused and _wanted(peer.name, plan.candidates)
    ]
    baseline = next((peer for name in BASELINES for peer in wanted if peer.name == name), wanted[0])
    others = [peer for peer in wanted if peer is not baseline]
    held = (plan.together or len(wanted)) - 1
    rows: list[dict[str, Any]] = []
    groups = [others[at : at + held] for at in range(0, len(others), held)] if held else [[]]
    for group in groups:
        settings = [(peer, _setting(plan, bundle, grid, threads, folder, peer)) for peer in (baseline, *group)]
        running = list(_started(settings, plan.patience, folder, refused))
        try:
            _alternate(running, plan.rounds, seed=len(rows))
            measured = [_row(item, running[0], bundle, grid, threads, peaks) for item in running]
        finally:
            for item in running:
                item.process.close()
        rows += measured if group is groups[0] else measured[1:]
        sys.stderr.writelines(f"{_line(row)}\n" for row in sorted(measured, key=lambda row: row["median_seconds"]))
    return sorted(rows, key=lambda row: float(row["median_seconds"]))


def _wanted(name: str, texts: tuple[str, ...]) -> bool:
    return not texts or any(text == f"={name}" or text in name for text in texts)


def _setting(plan: Plan, bundle: Bundle, grid: Grid, threads: int, folder: Path, peer: Peer) -> Setting:
    return Setting(plan.bundle, plan.model, bundle.manifest.vision, grid, threads, folder / f"{grid}-{peer.export}")


def _started(
    settings: list[tuple[Peer, Setting]], patience: float, folder: Path, refused: dict[str, str]
) -> Iterator[Process]:
    for index, (peer, setting) in enumerate(settings):
        try:
            if peer.prepare is not None and not setting.prepared.exists():
                with atomic.new_folder(setting.prepared) as unfinished:
                    prepare(peer, replace(setting, prepared=unfinished))
            yield start(peer, setting, folder / f"outputs-{index}.npz", patience)
        except ContractError as error:
            if index == 0:
                raise InputError(f"the baseline does not run: {error}", field=peer.name) from None
            refused[peer.name] = error.message


def _alternate(running: list[Process], rounds: int, seed: int) -> None:
    order = list(running)
    for number in range(rounds):
        random.Random(f"{seed} {number}").shuffle(order)
        for item in order:
            if min(item.seconds, default=item.first_seconds) < SHORT_SECONDS:
                item.run(timed=False)
            item.run(timed=True)


def _row(
    item: Process, baseline: Process, bundle: Bundle, grid: Grid, threads: int, peaks: dict[str, float]
) -> dict[str, Any]:
    """Medians and spread of a candidate, its ratio to the baseline round by round, and to the floor."""
    dtype, vision = item.peer.dtype, bundle.manifest.vision
    ratios = [base / own for base, own in zip(baseline.seconds, item.seconds, strict=True)]
    return {
        "bucket": str(grid),
        "tokens": grid.tokens(vision.merge_size),
        "threads": threads,
        "candidate": item.peer.name,
        "dtype": dtype,
        "median_seconds": statistics.median(item.seconds),
        "spread": [min(item.seconds), max(item.seconds)],
        "rounds": len(item.seconds),
        "device_median_seconds": statistics.median(item.device_seconds) if item.device_seconds else None,
        "times_faster_than_baseline": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "baseline": baseline.peer.name,
        "cosine_to_baseline": _cosine(item.outputs, baseline.outputs),
        "load_seconds": item.load_seconds,
        "first_seconds": item.first_seconds,
        "peak_bytes": item.peak_bytes,
        "flops": _cost(dtype, vision, grid).flops,
        "floor_seconds": floor_of(dtype, vision, grid, peaks),
    }


def floor_of(dtype: str, vision: VisionSpec, grid: Grid, peaks: dict[str, float]) -> float | None:
    """Seconds that a candidate of this type cannot beat, None where its peak is not known."""
    peak = peaks.get(dtype)
    return None if peak is None else _cost(dtype, vision, grid).floor(peak, peaks["bytes"])


def _cost(dtype: str, vision: VisionSpec, grid: Grid) -> EncoderCost:
    return encoder_cost(vision, grid, {"fp32": 4, "int8": 1, "fp8": 1}.get(dtype, 2))


def _cosine(one: Path, other: Path) -> float:
    with np.load(one) as mine, np.load(other) as theirs:
        return min(distance(mine[name], theirs[name]).cosine for name in theirs.files)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['bucket']} {row['threads']} threads, {row['candidate']}: {row['median_seconds']:.3f} s, "
        f"{row['times_faster_than_baseline']:.2f} times, {row['peak_bytes'] / 1e9:.2f} GB, "
        f"cosine {row['cosine_to_baseline']:.6f}"
    )
