"""`qwen3vl-edge fit-basis`: directions in which the encoder's embeddings vary, to send fewer of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3vl_edge.tools.cli.calibrate import warn_of_skipped
from qwen3vl_edge.tools.cli.options import (
    BundleArgument,
    DataOption,
    JsonOption,
    PrecisionOption,
    SeedOption,
    ThreadsOption,
)
from qwen3vl_edge.tools.cli.progress import progress_bar

if TYPE_CHECKING:
    from qwen3vl_edge.calibration.wire_basis import BasisResult


def fit_basis(
    bundle: BundleArgument,
    data: DataOption,
    samples: Annotated[int, typer.Option(help="Pictures and clips to encode.")] = 256,
    cosine: Annotated[float, typer.Option(help="Mean cosine that held-out embeddings shall keep.")] = 0.999,
    rank: Annotated[int, typer.Option(help="Directions of every tensor, in place of --cosine; 0 for none.")] = 0,
    precision: PrecisionOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit a basis to the encoder's embeddings, for --wire-dtype basis-int8 and basis-int4, into the bundle."""
    from qwen3vl_edge.calibration.wire_basis import BasisRequest
    from qwen3vl_edge.calibration.wire_basis import fit_basis as fit
    from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS

    with progress_bar() as progress:
        result = fit(bundle, BasisRequest(data, samples, cosine, rank, precision, seed, threads), progress)
    shares = {name: _share(name, result) for name in BASIS_PACKINGS}
    if not as_json:
        _print(bundle, result, shares)
        return
    document = asdict(result.record) | {
        "sha256": result.sha256,
        "shares_of_fp16": {name: round(share, 4) for name, share in shares.items()},
        "unreadable": result.selection.skipped,
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _share(name: str, result: BasisResult) -> float:
    """Bytes of a packing in the basis, as a part of those of float16."""
    from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS

    ranks = result.record.ranks
    packing = BASIS_PACKINGS[name]
    return sum(rank * packing.bytes_per_value(rank) for rank in ranks) / (2 * result.columns * len(ranks))


def _print(bundle: Path, result: BasisResult, shares: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

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
    console.print("of the bytes of fp16: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    console.print(f"the server needs it too: qwen3vl-edge server … --wire-basis {bundle / record.path}")
