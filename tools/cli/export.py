"""`qwen3vl-edge export`: the vision encoder of a checkpoint as a bundle."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qwen3vl_edge.tools.cli.options import JsonOption
from qwen3vl_edge.tools.cli.progress import progress_bar


def export(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or a hub id such as Qwen/Qwen3-VL-2B-Instruct.")],
    out: Annotated[Path, typer.Option("--out", help="Bundle folder to write; replaced only when complete.")],
    buckets: Annotated[str, typer.Option(help="Image buckets, HEIGHTxWIDTH in pixels, comma separated.")] = "448x448",
    video: Annotated[str, typer.Option(help="Video buckets, FRAMESxHEIGHTxWIDTH, comma separated.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or fp32,fp16.")] = "fp32",
    dynamic: Annotated[bool, typer.Option(help="Also write the dynamic-shape graph.")] = True,
    images: Annotated[
        Path | None, typer.Option(help="Folder of your pictures, to check the graphs and float16's headroom on too.")
    ] = None,
    pixel_policy: Annotated[
        str,
        typer.Option(help="Limits of pictures and clips: the checkpoint's (checkpoint), or qwen-vl-utils' defaults."),
    ] = "checkpoint",
    as_json: JsonOption = False,
) -> None:
    """Write the vision encoder of a checkpoint as an ONNX bundle, checked against PyTorch."""
    import numpy as np
    from rich.console import Console

    from qwen3vl_edge.export.bundle import export_bundle
    from qwen3vl_edge.export.unreachable_buckets import unreachable_buckets

    pictures = []
    if images is not None:
        from qwen3vl_edge.tools.parity.pictures import pictures_of

        pictures = [np.asarray(picture) for picture in pictures_of(images).values()]
    started = time.perf_counter()
    with progress_bar() as progress:
        manifest = export_bundle(
            model,
            out,
            image_buckets=buckets,
            video_buckets=video or None,
            precisions=[item.strip() for item in precision.split(",") if item.strip()],
            dynamic=dynamic,
            pictures=pictures,
            pixel_policy=pixel_policy,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    for line in unreachable_buckets(manifest):
        Console(stderr=True).print(f"[yellow]{line}[/]", soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(asdict(manifest) | {"seconds": seconds}, indent=1) + "\n")
        return
    from qwen3vl_edge.tools.cli.inspect import print_manifest

    print_manifest(manifest, out)
    Console().print(f"exported in {seconds:.1f} s")
