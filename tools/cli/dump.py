"""`qwen3vl-edge dump`: embeddings of pictures by a device's engine, in a file for a workstation to judge."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qwen3vl_edge.tools.cli.options import (
    BackendOption,
    BundleOption,
    DeviceOption,
    DtypeOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ProviderOption,
    TargetOption,
    ThreadsOption,
)


def dump(
    bundle: BundleOption,
    out: Annotated[Path, typer.Option("--out", help="Dump file to write (.npz).")],
    images: ImagesOption = None,
    backend: BackendOption = "auto",
    provider: ProviderOption = "auto",
    target: TargetOption = None,
    precision: PrecisionOption = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    layers: Annotated[bool, typer.Option("--layers", help="Also intermediate outputs (onnxruntime, pytorch).")] = False,
    polygraphy: Annotated[
        Path | None, typer.Option(help="Folder for polygraphy's files: BUCKET.inputs.json and .outputs.json.")
    ] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write what this device's engine makes of pictures, for `parity --dump` on a workstation."""
    from rich.console import Console

    from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
    from qwen3vl_edge.tools.parity.dump.dump import dump_edge
    from qwen3vl_edge.tools.parity.dump.dump_format import read_dump
    from qwen3vl_edge.tools.parity.layers.sources import layers_of, no_layers
    from qwen3vl_edge.tools.parity.pictures import pictures_of

    backend_options = BackendOptions(
        precision=precision,
        threads=threads,
        model=model,
        provider=provider,
        target=target,
        self_test=False,
        device=device,
        dtype=dtype,
    )
    options = EdgeOptions(backend=backend, backend_options=backend_options)
    console = Console(stderr=True)
    pictures = pictures_of(images)
    with open_edge(bundle, options) as edge, console.status("dump") as status:
        source = layers_of(edge) if layers else None
        if layers and source is None:
            raise no_layers(edge.encoder.name, "--layers")
        meta = dump_edge(edge, pictures, out, source, lambda bucket: status.update(f"bucket {bucket}"))
        manifest = edge.bundle.manifest
    written = [out]
    if polygraphy is not None:
        from qwen3vl_edge.tools.parity.dump.polygraphy_files import write_run_results

        written += write_run_results(read_dump(out), manifest, polygraphy)
    sizes = {str(path): path.stat().st_size for path in written}
    if as_json:
        sys.stdout.write(json.dumps({"files": sizes, **asdict(meta)}, indent=1) + "\n")
        return
    print_console = Console()
    for path, size in sizes.items():
        print_console.print(f"{path}: {size / 1e6:.1f} MB", highlight=False, soft_wrap=True)
    print_console.print(
        f"{len(meta.samples)} samples of {meta.backend} {meta.precision}; compare them where the checkpoint is: "
        f"qwen3vl-edge parity --dump {out.name} --bundle {bundle.name} --model MODEL",
        highlight=False,
        soft_wrap=True,
    )
