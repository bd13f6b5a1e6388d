"""One way to encode a picture, as the encoder bench runs and times it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec

Pixels = NDArray[np.float32]
# Embeddings and DeepStack levels: [n, D] each.
Outputs = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Setting:
    """What a candidate is measured on.

    Attributes:
        bundle: bundle folder.
        model: checkpoint folder that the bundle was exported from.
        vision: its tower.
        grid: of the picture.
        threads: CPU threads; 0 for the library's choice.
        prepared: folder that `Peer.prepare` filled.
    """

    bundle: Path
    model: Path | None
    vision: VisionSpec
    grid: Grid
    threads: int
    prepared: Path


@dataclass(frozen=True)
class Candidate:
    """A loaded encoder.

    Attributes:
        run: from pixel values in host memory to embeddings in host memory.
        device_seconds: runs once more and returns the GPU's seconds; None on a CPU.
    """

    run: Callable[[Pixels], Outputs]
    device_seconds: Callable[[Pixels], float] | None = None


@dataclass(frozen=True)
class Peer:
    """A row of the bench.

    Attributes:
        name: as the table has it.
        dtype: "fp32", "fp16", "bf16", "int8" or "fp8": of its products, which says by which peak it is judged.
        load: makes it ready; timed.
        prepare: writes what `load` reads (an export), once for a grid, untimed and in a process of its own.
        export: name of what `prepare` writes; peers that load the same share it.
    """

    name: str
    dtype: str
    load: Callable[[Setting], Candidate]
    prepare: Callable[[Setting], None] | None = None
    export: str = ""
