"""Many threads on one encoder, pictures of many sizes: each gets its own picture's embeddings, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend

Outputs = list[NDArray[Any]]
Pixels = NDArray[np.float32]


def outputs_of(encoder: EncoderBackend) -> Callable[[Grid, Pixels], Outputs]:
    """Runs an encoder backend; all of its outputs."""

    def run(grid: Grid, pixels: Pixels) -> Outputs:
        found = encoder.run(grid, pixels)
        return [found.embeds, *found.deepstack]

    return run


def check_threads(
    run: Callable[[Grid, Pixels], Outputs], work: Sequence[tuple[Grid, Pixels]], repeats: int = 1
) -> None:
    """Hold each thread's outputs to those of the same picture alone; raises what a thread raised.

    Args:
        work: a thread for each; all start together.
        repeats: how often each encodes its picture.
    """
    alone = [[output.copy() for output in run(*item)] for item in work]
    together = threading.Barrier(len(work))

    def encode(item: tuple[Grid, Pixels]) -> Outputs:
        together.wait()
        for _ in range(repeats):
            found = run(*item)
        return found

    with ThreadPoolExecutor(len(work)) as threads:
        for found, expected in zip(threads.map(encode, work), alone, strict=True):
            for output, want in zip(found, expected, strict=True):
                np.testing.assert_array_equal(output, want)
