"""`qwen3vl-edge inspect`: a bundle's contents and measurements, and the backends that this machine can run."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3vl_edge.tools.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from qwen3vl_edge.contract.bundle.manifest import GraphRecord, Manifest, PrecisionSet
    from qwen3vl_edge.contract.bundle.open import Bundle
    from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord, TensorSpec
    from qwen3vl_edge.contract.pixels.policy import PixelPolicy

NEAREST = 5  # layers that are shown; --json has all


def inspect(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")], as_json: JsonOption = False) -> None:
    """Check a bundle and show its buckets, sizes and measured parity."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from qwen3vl_edge.contract.bundle.open import open_bundle
    from qwen3vl_edge.edge_runtime.backends.availability import list_availability

    opened = open_bundle(bundle)
    backends = list_availability(opened)
    if as_json:
        here = [asdict(item) for item in backends]
        manifest = asdict(opened.manifest) | {"pixels": asdict(opened.pixels)}
        sys.stdout.write(json.dumps(manifest | {"runnable_here": here}, indent=1) + "\n")
        return
    print_manifest(opened.manifest, bundle)
    if opened.manifest.pixels is None:  # the others have printed it
        print_pixels(opened.pixels, " (of before bundles recorded it)")
    console = Console()
    print_engines(opened, console)
    table = Table(title="On this machine", title_justify="left")
    for name in ("backend", "runs", "why not, or what with"):
        table.add_column(name)
    for item in backends:
        table.add_row(item.backend, "yes" if item.runs else "no", escape(item.detail))
    console.print(table)


def print_manifest(manifest: Manifest, path: Path) -> None:
    """Tables of the graphs: tokens, size, worst figures against PyTorch; and of their tensors."""
    from rich.console import Console
    from rich.table import Table

    sizes = {record.path: record.bytes for record in manifest.files}
    vision = manifest.vision
    console = Console()
    console.print(f"[bold]{path}[/]  {manifest.model.id} ({manifest.model.model_type})")
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
    for item in manifest.precisions:
        _print_headroom(item, console)
    if manifest.pixels is not None:
        print_pixels(manifest.pixels)
    if (basis := manifest.basis) is not None:
        ranks, cosines = map(str, basis.ranks), (f"{value:.6f}" for value in basis.mean_cosines)
        console.print(
            f"basis for embeddings: {', '.join(ranks)} of {vision.out_hidden_size} directions, mean cosines "
            f"{', '.join(cosines)}, {basis.samples} samples: {basis.path}"
        )
    for kind, graph in _one_of_each_kind(manifest).items():
        console.print(f"{kind}: {_tensors(graph.inputs)} → {_tensors(graph.outputs)}")


def _print_headroom(item: PrecisionSet, console: Console) -> None:
    """How near to float16's largest value a set's layers come: the nearest ones, and those that stay float32."""
    if not item.headroom:
        return
    kept = [layer for layer in item.headroom if layer.precision == "fp32"]
    half = sorted((layer for layer in item.headroom if layer.precision == "fp16"), key=lambda layer: layer.headroom)
    nearest = ", ".join(f"{layer.layer} {layer.headroom:,.0f}" for layer in half[:NEAREST])
    console.print(f"{item.precision}: headroom to float16's largest value, least first: {nearest}")
    if kept:
        names = ", ".join(f"{layer.layer} (up to {layer.largest:,.0f})" for layer in kept)
        console.print(f"{item.precision}: {len(kept)} of {len(item.headroom)} layers stay float32: {names}")


def print_pixels(pixels: PixelPolicy, note: str = "") -> None:
    """The pixel policy and its limits."""
    from rich.console import Console

    image, video = pixels.image, pixels.video
    unit = "all frames together" if video.bounds == "all-frames" else "each frame"
    clip = f"{video.min_pixels:,} to {video.max_pixels:,} of {unit}"
    if video.frame_max_pixels is not None:
        clip += f", {video.frame_max_pixels:,} of each frame"
    if video.total_pixels is not None:
        clip += f", twice {video.total_pixels:,} of all together"
    Console().print(
        f"pixel policy {pixels.name}{note}: pictures {image.min_pixels:,} to {image.max_pixels:,} pixels, clips {clip}"
    )


def print_engines(bundle: Bundle, console: Console) -> None:
    """A table of the engines built so far, or the command that builds one; kernels where a report was built."""
    from rich.table import Table

    from qwen3vl_edge.export.tensorrt.build_engines import kernel_rows
    from qwen3vl_edge.tools.cli.build import kernel_table

    if not bundle.manifest.engines:
        console.print(f"no engines; build some with: qwen3vl-edge build {bundle.path} --target … (--list shows them)")
        return
    table = Table(title="Engines", title_justify="left")
    for name in ("target", "precision", "library", "for", "layout", "buckets", "bytes", "built in"):
        table.add_column(name, justify="right" if name in ("bytes", "built in") else "left")
    for engine in bundle.manifest.engines:
        table.add_row(*_engine_cells(bundle, engine))
    console.print(table)
    for engine in bundle.manifest.engines:
        if rows := kernel_rows(bundle.path, engine):
            console.print(kernel_table(rows, f"Kernels of {engine.target} {engine.precision}"))


def _engine_cells(bundle: Bundle, engine: EngineRecord) -> tuple[str, ...]:
    buckets = [bucket for plan in engine.plans for bucket in plan.buckets]
    size = sum(bundle.manifest.file(plan.path).bytes for plan in engine.plans)
    return (
        engine.target,
        engine.precision,
        f"{engine.library} {engine.library_version}",
        ", ".join(engine.compute_capabilities),
        engine.layout + (", stripped" if engine.stripped else ""),
        ", ".join(buckets),
        f"{size:,}",
        f"{engine.seconds:.1f} s",
    )


def _one_of_each_kind(manifest: Manifest) -> dict[str, GraphRecord]:
    """The tensors differ between kinds; between buckets only their sizes do."""
    return {graph.kind: graph for graph in reversed(manifest.precisions[0].graphs)}


def _tensors(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} \\[{', '.join(map(str, spec.shape))}]" for spec in specs)


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
