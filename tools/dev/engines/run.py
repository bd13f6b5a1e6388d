"""Search for towers and grids that a backend of this machine's CPU computes otherwise than PyTorch.

python -m qwen3vl_edge.tools.dev.engines.run --towers 500 --seed 1 [--out docs/reports/benchmarks/engines.json]
python -m qwen3vl_edge.tools.dev.engines.run --seed 1 --only 41      runs that tower alone

Each tower has a process of its own: a library that crashes is a finding, not the end of the search. Exit code 1 if
anything was found.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.golden import golden_input
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.precision import as_computed
from qwen3vl_edge.contract.bundle.torch_encoder import encoder_tensors
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, EncoderBackend, PixelBackend
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.engines.towers import Tower, draw_tower
from qwen3vl_edge.tools.dev.random_checkpoint import encoder_checkpoint

BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")


@dataclass(frozen=True)
class Run:
    """One run of a graph beside PyTorch: the relative L2 of its worst output."""

    backend: str
    precision: str
    kind: str
    grid: str
    relative_l2: float

    @property
    def wrong(self) -> bool:
        """Whether it is beyond parity's limit, of which random towers of a few layers have a hundredth; NaN is."""
        return not self.relative_l2 <= as_computed(self.precision, self.backend).max_relative_l2


@dataclass(frozen=True)
class Finding:
    """A tower that something is wrong with: the runs that are, or what stopped it."""

    index: int
    tower: Tower
    runs: tuple[Run, ...]
    stopped: str = ""


def search(seed: int, indexes: Sequence[int], progress: bool = False) -> tuple[list[Run], list[Finding]]:
    """Run towers.

    Returns:
        All runs, and the towers with a wrong one, an error or a crash.
    """
    runs: list[Run] = []
    findings: list[Finding] = []
    for count, index in enumerate(indexes, start=1):
        tower = draw_tower(seed, index)
        found, stopped = _in_a_process(tower)
        runs += found
        wrong = tuple(run for run in found if run.wrong)
        if wrong or stopped:
            findings.append(Finding(index, tower, wrong, stopped))
        if progress and (count % 10 == 0 or wrong or stopped):
            print(f"{count} towers, {len(runs)} runs, {len(findings)} found", file=sys.stderr, flush=True)
    return runs, findings


def _in_a_process(tower: Tower) -> tuple[list[Run], str]:
    """The runs of a tower, and why it stopped before its end, if it did."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_runs, args=(tower, sender))
    process.start()
    sender.close()
    runs, stopped = [], "the process ended"
    try:
        while isinstance(item := receiver.recv(), Run):
            runs.append(item)
        stopped = str(item)
    except EOFError:
        pass
    process.join()
    return runs, stopped + (f" with {process.exitcode}" if process.exitcode else "")


def _send_runs(tower: Tower, sender: Connection) -> None:
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for run in runs_of(tower, Path(folder)):
                sender.send(run)
        sender.send("")
    except Exception as error:  # whatever it is, it is a finding
        sender.send(f"{type(error).__name__}: {error}")


def runs_of(tower: Tower, folder: Path) -> Iterator[Run]:
    """Export a tower, and run every kind of graph of each precision on each backend."""
    checkpoint = encoder_checkpoint(folder / "checkpoint", **tower.vision)
    images, clips = _buckets(tower)
    export_bundle(
        str(checkpoint.path),
        folder / "bundle",
        image_buckets=images,
        video_buckets=clips,
        precisions=tower.precisions,
    )
    bundle = open_bundle(folder / "bundle", verify=False)
    references = {grid: _reference(checkpoint.encoder, bundle, grid) for grid in (*tower.fixed, *tower.free)}
    for name in BACKENDS:
        for precision in tower.precisions:
            for kind, part in (("fixed", bundle), ("dynamic", _dynamic_alone(bundle))):
                try:
                    backend = load_backend(name, part, BackendOptions(precision, threads=1))
                except InputError:  # not installed, or not for this CPU
                    continue
                served = tower.fixed if kind == "fixed" else (*tower.fixed, *tower.free)
                for grid in served:
                    for form, outputs in _outputs(backend, part, grid):
                        worst = max(
                            (distance(output, want).relative_l2, index)
                            for index, (output, want) in enumerate(zip(outputs, references[grid], strict=True))
                        )[0]
                        yield Run(name, precision, form or kind, str(grid), worst)
                backend.close()


def _buckets(tower: Tower) -> tuple[str, str]:
    """Image and video buckets as `export` takes them."""
    patch, frames = tower.vision["patch_size"], tower.vision["temporal_patch_size"]
    sizes = {grid: f"{grid.h * patch}x{grid.w * patch}" for grid in tower.fixed}
    images = [size for grid, size in sizes.items() if grid.t == 1]
    clips = [f"{grid.t * frames}x{size}" for grid, size in sizes.items() if grid.t > 1]
    return ",".join(images), ",".join(clips)


def _dynamic_alone(bundle: Bundle) -> Bundle:
    """The bundle without its fixed graphs, so that the dynamic one serves every grid."""
    sets = tuple(
        replace(item, graphs=tuple(graph for graph in item.graphs if graph.kind == "dynamic"))
        for item in bundle.manifest.precisions
    )
    return replace(bundle, manifest=replace(bundle.manifest, precisions=sets))


def _reference(encoder: Any, bundle: Bundle, grid: Grid) -> list[NDArray[Any]]:
    pixels = torch.from_numpy(_pixels(bundle, grid))
    with torch.inference_mode():
        out = encoder(pixels, grid_thw=torch.tensor([grid.as_list()]))
    return [tensor.numpy() for tensor in encoder_tensors(out)]


def _pixels(bundle: Bundle, grid: Grid) -> NDArray[np.float32]:
    return golden_input(grid, bundle.manifest.vision, bundle.manifest.preprocessing).pixel_values


def _outputs(backend: EncoderBackend, bundle: Bundle, grid: Grid) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """What a backend makes of a grid's picture, by way of its patches, then of its uint8 pixels where it can."""
    drawn = golden_input(grid, bundle.manifest.vision, bundle.manifest.preprocessing)
    yield "", _listed(backend.run(grid, drawn.pixel_values))
    if isinstance(backend, PixelBackend) and backend.takes_pixels(grid) and drawn.pixels is not None:
        yield "uint8", _listed(backend.run_pixels(grid, drawn.pixels))


def _listed(found: Embeddings) -> list[NDArray[Any]]:
    return [found.embeds, *found.deepstack]


def worst_by_graph(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Number of runs and largest relative L2, by backend, precision and kind of graph."""
    table: dict[str, dict[str, float]] = {}
    for run in runs:
        row = table.setdefault(f"{run.backend} {run.precision} {run.kind}", {"runs": 0, "relative_l2": 0.0})
        row["runs"] += 1
        row["relative_l2"] = float(np.maximum(row["relative_l2"], run.relative_l2))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first tower")
    parser.add_argument("--only", type=int, help="one tower's index")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    indexes = range(arguments.first, arguments.first + arguments.towers)
    if arguments.only is not None:
        indexes = range(arguments.only, arguments.only + 1)
    try:
        runs, findings = search(arguments.seed, indexes, progress=True)
    except ContractError as error:
        sys.exit(str(error))
    report = {
        "environment": environment(),
        "seed": arguments.seed,
        "towers": len(indexes),
        "runs": len(runs),
        "worst": worst_by_graph(runs),
        "found": [asdict(finding) for finding in findings],
    }
    text = json.dumps(report, indent=1) + "\n"
    if arguments.out is not None:
        atomic.write_bytes(arguments.out, text.encode())
    print(text)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
