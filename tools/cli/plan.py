"""`qwen3vl-edge plan`: which way answers first over a link, from figures measured on each machine."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.cli.options import BundleOption, JsonOption

if TYPE_CHECKING:
    from qwen3vl_edge.contract.bundle.grid import Grid
    from qwen3vl_edge.contract.bundle.open import Bundle
    from qwen3vl_edge.tools.plan.paths import Pictures, Prediction, Speeds
    from qwen3vl_edge.tools.plan.transfer import LinkSpeed

MEASURED_RUNS = 3


def plan(
    bundle: BundleOption,
    link_mbit: Annotated[float, typer.Option(min=0.01, help="Link to the server, million bits per second.")],
    rtt_ms: Annotated[float, typer.Option(min=0.0, help="To the server and back.")],
    server_encode_ms: Annotated[float, typer.Option(min=0.0, help="Preprocessing and encoder on an unsplit server.")],
    server_prefill_ms: Annotated[float, typer.Option(min=0.0, help="The prompt on the server: `server.*` of `ask`.")],
    device_encode_ms: Annotated[
        float | None, typer.Option(min=0.0, help="The same on the device, all pictures; measured here by default.")
    ] = None,
    device_prefill_ms: Annotated[
        float | None, typer.Option(min=0.0, help="The prompt on the device, where the language model fits there.")
    ] = None,
    image: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels; the bundle's first bucket by default.")] = "",
    images: Annotated[int, typer.Option(min=1, help="Pictures in the question.")] = 1,
    jpeg_kb: Annotated[float, typer.Option(min=0.0, help="Kilobytes of one picture's file.")] = 60.0,
    pack_ms: Annotated[float, typer.Option(min=0.0, help="To pack and unpack, for int8 and int4.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Predict which answers first over a link: the split, an unsplit server, or everything on the device."""
    from qwen3vl_edge.contract.bundle.open import open_bundle
    from qwen3vl_edge.tools.plan.paths import SPLIT_TYPES, Pictures, Speeds, break_even_mbit, predict
    from qwen3vl_edge.tools.plan.transfer import LinkSpeed

    link = LinkSpeed(link_mbit, rtt_ms / 1e3)
    opened = open_bundle(bundle)
    vision = opened.manifest.vision
    grid = _grid(opened, image)
    tokens = images * grid.tokens(vision.merge_size)
    levels = len(vision.deepstack_visual_indexes)
    pictures = Pictures(tokens, vision.out_hidden_size, levels, int(images * jpeg_kb * 1e3))
    measured = device_encode_ms is None
    speeds = Speeds(
        device_encode=images * _measure(opened, grid) if device_encode_ms is None else device_encode_ms / 1e3,
        server_encode=server_encode_ms / 1e3,
        server_prefill=server_prefill_ms / 1e3,
        device_prefill=None if device_prefill_ms is None else device_prefill_ms / 1e3,
        pack=pack_ms / 1e3,
    )
    predictions = predict(pictures, speeds, link)
    even = {name: break_even_mbit(pictures, speeds, link.rtt_s, name) for name in SPLIT_TYPES}
    if not as_json:
        _print(pictures, speeds, predictions, even, link, measured)
        return
    document = {
        "pictures": asdict(pictures),
        "speeds": asdict(speeds),
        "device_encode_measured_here": measured,
        "ways": [asdict(item) | {"seconds": item.seconds} for item in predictions],
        "as_fast_as_the_unsplit_server_from_mbit": even,
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _grid(bundle: Bundle, size: str) -> Grid:
    if not size:
        grid = next((bucket for bucket in bundle.manifest.buckets() if bucket.t == 1), None)
        if grid is None:
            raise InputError("the bundle has no image bucket", field="--image", remedy="Name a size: --image 448x448")
        return grid
    height, _, width = size.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise InputError("bad size", field="--image", expected="HEIGHTxWIDTH in pixels", got=size[:40])
    return bundle.manifest.vision.geometry.image_grid(int(height), int(width))


def _measure(bundle: Bundle, grid: Grid) -> float:
    """Seconds of the encoder alone, here and now; the median of a few runs."""
    import numpy as np

    from qwen3vl_edge.edge_runtime.backends.registry import load_backend
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions

    encoder = load_backend("onnxruntime", bundle, BackendOptions())
    try:
        pixels = np.zeros((grid.patches, bundle.manifest.vision.patch_values), np.float32)
        encoder.run(grid, pixels)
        seconds = []
        for _ in range(MEASURED_RUNS):
            started = time.perf_counter()
            encoder.run(grid, pixels)
            seconds.append(time.perf_counter() - started)
    finally:
        encoder.close()
    return statistics.median(seconds)


def _print(
    pictures: Pictures,
    speeds: Speeds,
    predictions: list[Prediction],
    even: dict[str, float | None],
    link: LinkSpeed,
    measured: bool,
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"time to first token, {pictures.tokens} visual tokens, {link.mbit:g} Mbit/s, {link.rtt_s * 1e3:g} ms",
        title_justify="left",
    )
    stages = ("encode", "pack", "link", "prefill")
    for name in ("way", "seconds", *stages, "bytes sent"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for item in predictions:
        cells = [f"{item.stages.get(stage, 0.0):.3f}" for stage in stages]
        table.add_row(item.name, f"{item.seconds:.3f}", *cells, f"{item.sent_bytes:,}")
    console.print(table)
    for name, mbit in even.items():
        where = "on no link" if mbit is None else "on any link" if mbit == 0 else f"from {mbit:,.0f} Mbit/s on"
        console.print(f"split {name} is as fast as the unsplit server {where}")
    source = "measured here with ONNX Runtime on the CPU" if measured else "as given"
    console.print(
        f"encoding on the device: {speeds.device_encode * 1e3:,.0f} ms, {source}. See docs/guides/when-to-split.md."
    )
