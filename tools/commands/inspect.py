"""`qwen3vl-edge inspect`: what a bundle holds and what was measured when it was exported."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from contract.bundle import open_bundle
from contract.manifest import GraphRecord, Manifest


def run(bundle: Path, as_json: bool) -> None:
    """Check a bundle and print it.

    Raises:
        BundleError: missing, truncated or altered.
    """
    opened = open_bundle(bundle)
    if as_json:
        sys.stdout.write(opened.manifest.to_json())
    else:
        print_manifest(opened.manifest, bundle)


def print_manifest(manifest: Manifest, bundle: Path) -> None:
    """A table of graphs: tokens, size and worst figures against PyTorch."""
    sizes = {record.path: record.bytes for record in manifest.files}
    vision = manifest.vision
    console = Console()
    console.print(f"[bold]{bundle}[/]  {manifest.model.id} ({manifest.model.model_type})")
    console.print(
        f"model hash {manifest.model.model_hash[:16]}…, {len(vision.deepstack_visual_indexes)} DeepStack levels"
    )
    table = Table()
    for name in ("precision", "graph", "bucket", "pixels", "tokens", "graph bytes", "worst cosine", "worst max abs"):
        table.add_column(name, justify="left" if name in ("precision", "graph", "bucket") else "right")
    for item in manifest.precisions:
        for graph in item.graphs:
            table.add_row(item.precision, *_cells(graph, manifest), f"{sizes[graph.path]:,}", *_figures(graph))
        console.print(f"{item.precision}: weights {sizes[item.weights]:,} bytes, shared by {len(item.graphs)} graphs")
    console.print(table)


def _cells(graph: GraphRecord, manifest: Manifest) -> tuple[str, str, str, str]:
    grid = graph.grid
    if grid is None:
        return graph.kind, "any", "any", "any"
    height, width = manifest.vision.geometry.pixels(grid)
    frames = f"{manifest.vision.geometry.frames(grid)}x" if grid.t > 1 else ""
    return graph.kind, str(grid), f"{frames}{height}x{width}", str(grid.tokens(manifest.vision.merge_size))


def _figures(graph: GraphRecord) -> tuple[str, str]:
    if not graph.parity:
        return "", ""
    return f"{min(row.cosine for row in graph.parity):.7f}", f"{max(row.max_abs for row in graph.parity):.1e}"
