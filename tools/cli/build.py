"""`qwen3vl-edge build`: TensorRT and TensorRT-RTX engines of a bundle."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.cli.options import JsonOption
from qwen3vl_edge.tools.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from qwen3vl_edge.contract.bundle.grid import Grid
    from qwen3vl_edge.contract.bundle.manifest import Manifest
    from qwen3vl_edge.export.tensorrt.build_engines import BuildResult

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def build(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder made by `export`.")] = None,
    target: Annotated[str, typer.Option(help="Where the engine will run; see --list.")] = "this-gpu",
    precision: Annotated[str | None, typer.Option(help="Of the bundle; fp16 by default where it has it.")] = None,
    buckets: Annotated[str, typer.Option(help="Image buckets, HEIGHTxWIDTH in pixels; all of the bundle's.")] = "",
    video: Annotated[str, typer.Option(help="Video buckets, FRAMESxHEIGHTxWIDTH; all of the bundle's.")] = "",
    layout: Annotated[str, typer.Option(help="profiles: one plan for all buckets; per-bucket: one each.")] = "profiles",
    workspace: Annotated[str, typer.Option(help="Scratch memory for the builder, as 2GiB; the target's.")] = "",
    timing_cache: Annotated[Path | None, typer.Option(help="Timing cache file (tensorrt).")] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0 fastest build, 5 best engine.")
    ] = None,
    strip_weights: Annotated[bool, typer.Option(help="Plans without weights, refitted when loaded.")] = False,
    report: Annotated[
        bool, typer.Option(help="List each plan's kernels beside it: how many a block, which attention is fused.")
    ] = False,
    list_targets: Annotated[bool, typer.Option("--list", help="Show the targets and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build TensorRT or TensorRT-RTX engines from a bundle, into it."""
    from qwen3vl_edge.contract.bundle.open import open_bundle
    from qwen3vl_edge.export.tensorrt.build_engines import build_engines, engine_json
    from qwen3vl_edge.export.tensorrt.build_job import BuildRequest

    if list_targets:
        print_targets(as_json)
        return
    if bundle is None:
        raise InputError(
            "no bundle given", field="BUNDLE", remedy="Make one with: qwen3vl-edge export MODEL --out BUNDLE"
        )
    request = BuildRequest(
        target=target,
        precision=precision,
        layout=layout,
        timing_cache=timing_cache,
        optimization_level=optimization_level,
        strip_weights=strip_weights,
        report=report,
        buckets=parse_buckets(open_bundle(bundle, verify=False).manifest, buckets, video),
        workspace=parse_size(workspace) if workspace else None,
    )
    try:
        with progress_bar() as progress:
            result = build_engines(bundle, request, progress)
    except KeyboardInterrupt:
        sys.stderr.write("qwen3vl-edge: interrupted; the bundle is unchanged\n")
        raise SystemExit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(engine_json(bundle, result), indent=1) + "\n")
    else:
        _print(bundle, result, report)


def parse_buckets(manifest: Manifest, images: str, video: str) -> tuple[Grid, ...] | None:
    """Buckets in pixels, as `export` takes them; None for all of the bundle."""
    if not images and not video:
        return None
    from qwen3vl_edge.contract.bundle.grid import parse_image_buckets, parse_video_buckets

    geometry = manifest.vision.geometry
    return tuple(dict.fromkeys([*parse_image_buckets(images, geometry), *parse_video_buckets(video, geometry)]))


def parse_size(text: str) -> int:
    """Bytes from "512MiB", "2GiB", "2G" or "1073741824".

    Raises:
        InputError: anything else, or nothing at all.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([KMG]?)(iB|B)?\s*", text, re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise InputError("bad --workspace", field="--workspace", expected="a size such as 512MiB or 2GiB", got=text)
    return int(match[1]) * UNITS[match[2].upper()]


def print_targets(as_json: bool) -> None:
    """The table of targets and whether this machine can build for them."""
    from rich.console import Console
    from rich.table import Table

    from qwen3vl_edge.export.tensorrt.build_job import buildable_here
    from qwen3vl_edge.export.tensorrt.targets import TARGETS

    reasons = buildable_here()
    if as_json:
        rows = [
            asdict(target) | {"target": target.name, "built_here": not reasons[target.name]}
            for target in TARGETS.values()
        ]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    table = Table()
    for name in ("target", "library", "compute capability", "precisions", "devices", "built here"):
        table.add_column(name)
    for target in TARGETS.values():
        table.add_row(
            target.name,
            "either" if target.library == "any" else target.library,
            ", ".join(target.compute_capabilities) or "this GPU's",
            ", ".join(target.precisions),
            target.devices,
            "no" if reasons[target.name] else "yes",
        )
    Console().print(table)


def kernel_table(rows: list[dict[str, Any]], title: str = "Kernels") -> Table:
    """Counts of kernels, a row for each bucket, as `kernel_rows` gives them."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("bucket", "kernels", "a block", "fused attention", "products", "moves", "softmax", "other"):
        table.add_column(name, justify="left" if name in ("bucket", "fused attention") else "right")
    for row in rows:
        fewest, most = row["fewest_a_block"], row["most_a_block"]
        table.add_row(
            row["bucket"],
            str(row["kernels"]),
            str(most) if fewest == most else f"{fewest} to {most}",
            f"{row['fused_attention']} of {row['blocks']}",
            *(str(row[kind]) for kind in ("product", "movement", "softmax", "other")),
        )
    return table


def _print(bundle: Path, result: BuildResult, report: bool) -> None:
    """Print the engine.

    Args:
        report: was asked for.
    """
    from rich.console import Console
    from rich.table import Table

    from qwen3vl_edge.export.tensorrt.build_engines import kernel_rows

    record = result.record
    console = Console()
    table = Table()
    for name in ("plan", "buckets", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for plan in record.plans:
        table.add_row(plan.path, ", ".join(plan.buckets), f"{(bundle / plan.path).stat().st_size:,}")
    console.print(table)
    rows = kernel_rows(bundle, record)
    if rows:
        console.print(kernel_table(rows))
    elif report:
        console.print(f"no kernels listed: {record.library} shows them only where a GPU can load the plan")
    capabilities = ", ".join(record.compute_capabilities)
    console.print(
        f"{record.library} {record.library_version} for compute capability {capabilities}, {record.precision}"
    )
    if result.skipped:
        console.print(f"nothing changed since it was built in {record.seconds:.1f} s")
    else:
        console.print(f"built in {record.seconds:.1f} s")
