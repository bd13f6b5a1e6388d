"""`qwen3vl-edge fit-basis`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS
from qwen3vl_edge.tools.cli.calibrate import warn_of_skipped

if TYPE_CHECKING:
    from qwen3vl_edge.calibration.wire_basis import BasisRequest, BasisResult


def run(bundle: Path, request: BasisRequest, as_json: bool) -> None:
    """Fit, with a progress bar on stderr, and print what was kept and what it saves.

    Raises:
        ContractError: options or data that cannot be used; then the bundle is as it was.
    """
    from qwen3vl_edge.calibration.wire_basis import fit_basis

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=1.0)
        result = fit_basis(bundle, request, lambda what, done: progress.update(task, description=what, completed=done))
    if as_json:
        shares = {name: round(_share(name, result), 4) for name in BASIS_PACKINGS}
        document = asdict(result.record) | {"sha256": result.sha256, "shares_of_fp16": shares}
        sys.stdout.write(json.dumps(document | {"unreadable": result.selection.skipped}, indent=1) + "\n")
        return
    _print(bundle, result)


def _share(name: str, result: BasisResult) -> float:
    """Of the bytes of float16."""
    ranks = result.record.ranks
    packing = BASIS_PACKINGS[name]
    return sum(rank * packing.bytes_per_value(rank) for rank in ranks) / (2 * result.columns * len(ranks))


def _print(bundle: Path, result: BasisResult) -> None:
    console, record = Console(), result.record
    warn_of_skipped(result.selection.skipped, Console(stderr=True))
    console.print(
        f"fitted to {record.rows} embeddings of {record.precision}, {record.samples} samples; measured on "
        f"{record.held_out_rows} of samples that were held out"
    )
    table = Table()
    for name in ("tensor", "directions", "of", "mean cosine", "least cosine"):
        table.add_column(name, justify="left" if name == "tensor" else "right")
    for index, rank in enumerate(record.ranks):
        tensor = "embeds" if index == 0 else f"deepstack.{index - 1}"
        cosines = f"{record.mean_cosines[index]:.6f}", f"{record.least_cosines[index]:.6f}"
        table.add_row(tensor, str(rank), str(result.columns), *cosines)
    console.print(table)
    console.print("of the bytes of fp16: " + ", ".join(f"{name} {_share(name, result):.3f}" for name in BASIS_PACKINGS))
    console.print(f"the server needs it too: qwen3vl-edge server … --wire-basis {bundle / record.path}")
