"""`qwen3vl-edge build`."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qwen3vl_edge.contract.bundle.grid import Grid, parse_image_buckets, parse_video_buckets
from qwen3vl_edge.contract.bundle.manifest import Manifest
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.tensorrt.build import BuildResult, build_engines, engine_json
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest, buildable_here
from qwen3vl_edge.export.tensorrt.targets import TARGETS

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def run(
    bundle: Path,
    request: BuildRequest,
    buckets: str,
    video: str,
    workspace: str,
    as_json: bool,
) -> None:
    """Build the engines of a target, with a progress bar on stderr.

    Raises:
        ContractError: what was asked for cannot be built, or not here; the bundle stays as it was.
    """
    request = replace(
        request,
        buckets=parse_buckets(open_bundle(bundle, verify=False).manifest, buckets, video),
        workspace=parse_size(workspace) if workspace else None,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=1.0)
        try:
            result = build_engines(
                bundle, request, lambda what, done: progress.update(task, description=what, completed=done)
            )
        except KeyboardInterrupt:
            progress.stop()
            sys.stderr.write("qwen3vl-edge: interrupted; the bundle is as it was\n")
            raise SystemExit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(engine_json(result), indent=1) + "\n")
        return
    _print(bundle, result)


def parse_buckets(manifest: Manifest, images: str, video: str) -> tuple[Grid, ...] | None:
    """Buckets in pixels, as `export` takes them; None for all of the bundle."""
    if not images and not video:
        return None
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
    answers = buildable_here()
    if as_json:
        rows = [
            asdict(target) | {"target": target.name, "built_here": not answers[target.name]}
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
            "no" if answers[target.name] else "yes",
        )
    Console().print(table)


def _print(bundle: Path, result: BuildResult) -> None:
    record = result.record
    console = Console()
    table = Table()
    for name in ("plan", "buckets", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for plan in record.plans:
        table.add_row(plan.path, ", ".join(plan.buckets), f"{(bundle / plan.path).stat().st_size:,}")
    console.print(table)
    capabilities = ", ".join(record.compute_capabilities)
    console.print(
        f"{record.library} {record.library_version} for compute capability {capabilities}, {record.precision}"
    )
    if result.skipped:
        console.print(f"nothing changed since it was built in {record.seconds:.1f} s")
    else:
        console.print(f"built in {record.seconds:.1f} s")
