"""`qwen3vl-edge export`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def run(model: str, out: Path, buckets: str, video: str, precision: str, dynamic: bool, as_json: bool) -> None:
    """Export, with a progress bar on stderr, and print what was written and measured.

    Raises:
        ContractError: any input, bucket, checkpoint or parity error; then `out` is as it was before.
    """
    from qwen3vl_edge.export.bundle import export_bundle

    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=1.0)
        manifest = export_bundle(
            model,
            out,
            image_buckets=buckets,
            video_buckets=video or None,
            precisions=[item.strip() for item in precision.split(",") if item.strip()],
            dynamic=dynamic,
            progress=lambda what, done: progress.update(task, description=what, completed=done),
        )
    seconds = time.perf_counter() - started
    if as_json:
        sys.stdout.write(json.dumps(asdict(manifest) | {"seconds": seconds}, indent=1) + "\n")
        return
    from qwen3vl_edge.tools.cli.inspect import print_manifest

    print_manifest(manifest, out)
    Console().print(f"exported in {seconds:.1f} s")
