"""`qwen3vl-edge calibrate`: the encoder quantized, calibrated on your own pictures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3vl_edge.tools.cli.options import BundleArgument, DataOption, JsonOption, SeedOption, ThreadsOption
from qwen3vl_edge.tools.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from qwen3vl_edge.calibration.calibrate import CalibrationResult

_SHOWN = 10  # skipped files and sensitive products printed one by one


def calibrate(
    bundle: BundleArgument,
    data: DataOption,
    precision: Annotated[str, typer.Option(help="int8 or fp8 (e4m3).")] = "int8",
    samples: Annotated[int, typer.Option(help="Pictures and clips to observe.")] = 256,
    method: Annotated[str, typer.Option(help="How ranges are chosen: max, entropy, percentile or mse.")] = "max",
    smooth: Annotated[float, typer.Option(help="SmoothQuant's alpha, 0 to 1; 0 for none.")] = 0.5,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Products to leave unquantized, as blocks.0.* ; may repeat.")
    ] = None,
    auto_exclude: Annotated[
        float | None,
        typer.Option(
            help="Cosine to reach: the products with the largest error are excluded until then. By default what parity "
            "asks, 0.999 for int8 and 0.998 for fp8; 0 excludes none."
        ),
    ] = None,
    rest: Annotated[
        str | None, typer.Option(help="fp32 or fp16 for all else; fp32 for int8 (CPUs), fp16 for fp8 (GPUs).")
    ] = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Quantize a bundle's encoder on your own pictures, into the bundle, and measure what it costs."""
    from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle

    patterns = tuple(item.strip() for entry in exclude or () for item in entry.split(",") if item.strip())
    request = CalibrationRequest(
        precision=precision,
        data=data,
        samples=samples,
        method=method,
        smooth=smooth,
        exclude=patterns,
        auto_exclude=auto_exclude,
        rest=rest,
        seed=seed,
        threads=threads,
    )
    started = time.perf_counter()
    with progress_bar() as progress:
        result = calibrate_bundle(bundle, request, progress)
    seconds = time.perf_counter() - started
    if not as_json:
        _print(result, seconds)
        return
    document = asdict(result.graphs) | {
        "skipped": result.skipped,
        "unreadable": result.selection.skipped,
        "thin_buckets": result.thin_buckets,
        "seconds": seconds,
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _print(result: CalibrationResult, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

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
        for name in ("product", "worst cosine", "relative L2", "cosine, other kinds"):
            table.add_column(name, justify="left" if name == "product" else "right")
        for effect in result.sensitivity.effects[:_SHOWN]:
            row = f"{effect.cosine:.6f}", f"{effect.relative_l2:.1e}", f"{effect.other_kinds:.6f}"
            table.add_row(effect.product, *row)
        console.print(table)
    for figure in record.figures:
        console.print(
            f"on {figure.count} pictures ({figure.pictures}): worst cosine {figure.cosine:.6f}, relative L2 "
            f"{figure.relative_l2:.1e}"
        )
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
    """The set is written, and parity judges it on real pictures; this warns of a large error before."""
    from qwen3vl_edge.calibration.sensitivity import other_kinds_floor
    from qwen3vl_edge.calibration.validation import OTHER_KINDS
    from qwen3vl_edge.contract.bundle.measurements import CalibrationFigure, OutputParity
    from qwen3vl_edge.contract.bundle.precision import PRECISIONS

    spec = PRECISIONS[result.graphs.precision]
    limit = spec.min_cosine
    rows: list[OutputParity | CalibrationFigure] = [row for graph in result.graphs.graphs for row in graph.parity]
    rows.extend(
        item for item in result.record.figures if item.pictures != OTHER_KINDS
    )  # they have a floor of their own, below
    for item in result.record.figures:
        if item.pictures == OTHER_KINDS and item.cosine < (least := other_kinds_floor(limit)):
            errors.print(
                f"[yellow]pictures of other kinds than the data's have cosine {item.cosine:.5f}, below {least}: "
                f"try --auto-exclude {limit}, or data with more kinds of pictures[/]"
            )
    worst, farthest = min(row.cosine for row in rows), max(row.relative_l2 for row in rows)
    if not all(spec.accepts(row.cosine, row.relative_l2) for row in rows):
        errors.print(
            f"[yellow]the worst cosine is {worst:.5f} and relative L2 {farthest:.1e}, and parity requires {limit} and "
            f"{spec.max_relative_l2:.1e}: try --auto-exclude {limit}, another --smooth, or more pictures like those of "
            "the device[/]"
        )


def _warn(result: CalibrationResult, errors: Console) -> None:
    warn_of_skipped(result.selection.skipped, errors)
    for bucket in result.thin_buckets:
        count = result.selection.per_bucket[bucket]
        errors.print(f"[yellow]bucket {bucket} has only {count} samples: add pictures of its shape to the data[/]")


def warn_of_skipped(skipped: Sequence[tuple[str, str]], errors: Console) -> None:
    """Print the files that could not be read, with the reasons."""
    from rich.markup import escape

    if skipped:
        errors.print(f"[yellow]{len(skipped)} of the data could not be used:[/]")
        for name, reason in skipped[:_SHOWN]:
            errors.print(f"  {escape(name)}: {escape(reason)}")
        if len(skipped) > _SHOWN:
            errors.print(f"  and {len(skipped) - _SHOWN} more")
