"""`qwen3vl-edge calibrate`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qwen3vl_edge.contract.bundle.precision import PRECISIONS

if TYPE_CHECKING:
    from qwen3vl_edge.calibration.calibrate import CalibrationRequest, CalibrationResult

_SHOWN = 10  # skipped files and sensitive products printed one by one


def run(bundle: Path, request: CalibrationRequest, as_json: bool) -> None:
    """Calibrate, with a progress bar on stderr, and print what was made and what it costs.

    Raises:
        ContractError: options or data that cannot be used; then the bundle is as it was.
    """
    from qwen3vl_edge.calibration.calibrate import calibrate_bundle

    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=1.0)
        result = calibrate_bundle(
            bundle, request, lambda what, done: progress.update(task, description=what, completed=done)
        )
    seconds = time.perf_counter() - started
    if as_json:
        document = asdict(result.graphs) | {
            "skipped": result.skipped,
            "unreadable": result.selection.skipped,
            "thin_buckets": result.thin_buckets,
            "seconds": seconds,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    _print(result, seconds)


def _print(result: CalibrationResult, seconds: float) -> None:
    console, errors = Console(), Console(stderr=True)
    _warn(result, errors)
    record = result.record
    total = len(record.quantized) + len(record.excluded)
    console.print(
        f"{result.graphs.precision}: {len(record.quantized)} of {total} products quantized from {record.samples} "
        f"samples, ranges by {record.method}" + (f", smoothed with {record.smooth}" if record.smooth else "")
    )
    if record.excluded:
        console.print(f"left in higher precision: {', '.join(record.excluded)}")
    if result.sensitivity is not None:
        table = Table(title="Most sensitive products, quantized alone", title_justify="left")
        for name in ("product", "worst cosine", "relative L2"):
            table.add_column(name, justify="left" if name == "product" else "right")
        for effect in result.sensitivity.effects[:_SHOWN]:
            table.add_row(effect.product, f"{effect.cosine:.6f}", f"{effect.relative_l2:.1e}")
        console.print(table)
    table = Table(title=f"against {record.base}", title_justify="left")
    for name in ("graph", "worst cosine", "worst relative L2"):
        table.add_column(name, justify="left" if name == "graph" else "right")
    for graph in result.graphs.graphs:
        worst = min(row.cosine for row in graph.parity), max(row.relative_l2 for row in graph.parity)
        table.add_row(f"{graph.bucket or 'any'} {graph.kind}", f"{worst[0]:.6f}", f"{worst[1]:.1e}")
    console.print(table)
    _warn_of_loss(result, errors)
    console.print("nothing changed since it was made" if result.skipped else f"calibrated in {seconds:.1f} s")


def _warn_of_loss(result: CalibrationResult, errors: Console) -> None:
    """The set is kept, for parity to judge on real pictures; but nobody should learn only there that it lost much."""
    limit = PRECISIONS[result.graphs.precision].min_cosine
    worst = min(row.cosine for graph in result.graphs.graphs for row in graph.parity)
    if worst < limit:
        errors.print(
            f"[yellow]the worst cosine is {worst:.5f}, and parity asks for {limit}: "
            f"try --auto-exclude {limit}, another --smooth, or more of the pictures that the device will see[/]"
        )


def _warn(result: CalibrationResult, errors: Console) -> None:
    warn_of_skipped(result.selection.skipped, errors)
    for bucket in result.thin_buckets:
        seen = result.selection.per_bucket[bucket]
        errors.print(f"[yellow]bucket {bucket} has only {seen} samples: add pictures of its shape to the data[/]")


def warn_of_skipped(skipped: Sequence[tuple[str, str]], errors: Console) -> None:
    """Name what could not be read of the data, and why."""
    if skipped:
        errors.print(f"[yellow]{len(skipped)} of the data could not be used:[/]")
        for name, reason in skipped[:_SHOWN]:
            errors.print(f"  {escape(name)}: {escape(reason)}")
        if len(skipped) > _SHOWN:
            errors.print(f"  and {len(skipped) - _SHOWN} more")
