"""Does it pay to encode several images of a size in one run? With and without, in turn, medians.

python -m qwen3vl_edge.tools.dev.bench.stacking --bundle BUNDLE --size 128x128 [--images 2,4,8] [--rounds 9]
    [--backend onnxruntime]

The bundle needs a TxHxW graph for each number of images, or the dynamic graph alone. Each round encodes the same
images both ways, in another order each time; a time is from patches in host memory to embeddings in host memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.edge_runtime.backends.registry import library_versions, load_backend
from qwen3vl_edge.edge_runtime.encoder.batching import describe_runs, encode_items
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--size", required=True, help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--images", default="2,4,8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--precision", default=None)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    backend = load_backend(arguments.backend, bundle, BackendOptions(arguments.precision, provider=arguments.provider))
    height, width = map(int, arguments.size.split("x"))
    vision, rng = bundle.manifest.vision, np.random.default_rng(0)
    grid = vision.geometry.image_grid(height, width)
    print(f"{backend.name} {backend.precision}, {grid}, {', '.join(library_versions(arguments.backend))}")
    for count in map(int, arguments.images.split(",")):
        shape = (grid.patches, vision.patch_values)
        items = [EncoderInput(grid, rng.standard_normal(shape).astype(np.float32)) for _ in range(count)]
        seconds: dict[bool, list[float]] = {True: [], False: []}
        runs = encode_items(backend, items, stack=True)[0].runs
        for index in range(arguments.rounds):
            for stack in (True, False) if index % 2 else (False, True):
                started = time.perf_counter()
                encode_items(backend, items, stack=stack)
                seconds[stack].append(time.perf_counter() - started)
        on, off = statistics.median(seconds[True]), statistics.median(seconds[False])
        print(
            f"{count} images: stacked ({describe_runs(runs)}) {on:.4f} s, one by one {off:.4f} s, ratio {off / on:.3f}"
        )
    backend.close()


if __name__ == "__main__":
    main()
