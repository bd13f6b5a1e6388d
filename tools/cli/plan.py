"""`qwen3vl-edge plan`: which way answers first over a link, from figures measured where they arise."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.plan.paths import SPLIT_TYPES, Pictures, Prediction, Speeds, break_even_mbit, predict
from qwen3vl_edge.tools.plan.transfer import LinkSpeed

MEASURED_RUNS = 3


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds as the command line has them; see `Speeds` of tools/plan/paths.py. None: to be measured here for the
    encoder, and no such way for the device's prefill."""

    device_encode: float | None
    server_encode: float
    server_prefill: float
    device_prefill: float | None
    pack: float


def run(
    path: Path,
    size: str,
    images: int,
    jpeg_kb: float,
    link: LinkSpeed,
    stages: StageTimes,
    as_json: bool,
) -> None:
    """Predict and print.

    Raises:
        BundleError: the bundle cannot be opened.
        InputError: a figure that is none.
    """
    bundle = open_bundle(path)
    vision = bundle.manifest.vision
    grid = _grid(bundle, size)
    tokens = images * grid.tokens(vision.merge_size)
    levels = len(vision.deepstack_visual_indexes)
    pictures = Pictures(tokens, vision.out_hidden_size, levels, int(images * jpeg_kb * 1e3))
    given, device_prefill = stages.device_encode, stages.device_prefill
    measured = given is None
    speeds = Speeds(
        device_encode=images * _measure(bundle, grid) if given is None else given / 1e3,
        server_encode=stages.server_encode / 1e3,
        server_prefill=stages.server_prefill / 1e3,
        device_prefill=None if device_prefill is None else device_prefill / 1e3,
        pack=stages.pack / 1e3,
    )
    ways = predict(pictures, speeds, link)
    even = {name: break_even_mbit(pictures, speeds, link.rtt_s, name) for name in SPLIT_TYPES}
    if as_json:
        found = {
            "pictures": asdict(pictures),
            "speeds": asdict(speeds),
            "device_encode_measured_here": measured,
            "ways": [asdict(way) | {"seconds": way.seconds} for way in ways],
            "as_fast_as_the_unsplit_server_from_mbit": even,
        }
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    _print(pictures, speeds, ways, even, link, measured)


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
    ways: list[Prediction],
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
    for way in ways:
        cells = [f"{way.stages.get(stage, 0.0):.3f}" for stage in stages]
        table.add_row(way.name, f"{way.seconds:.3f}", *cells, f"{way.sent_bytes:,}")
    console.print(table)
    for name, mbit in even.items():
        told = "on no link" if mbit is None else "on any link" if mbit == 0 else f"from {mbit:,.0f} Mbit/s on"
        console.print(f"split {name} is as fast as the unsplit server {told}")
    source = "measured here with ONNX Runtime on the CPU" if measured else "as given"
    console.print(
        f"encoding on the device: {speeds.device_encode * 1e3:,.0f} ms, {source}. See docs/guides/when-to-split.md."
    )
