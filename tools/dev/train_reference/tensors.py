"""A batch as tensors on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from qwen3vl_edge.tools.dev.train_reference.batches import Batch
from qwen3vl_edge.tools.dev.train_reference.looks import Look


@dataclass(frozen=True)
class TensorBatch:
    """`batches.Batch` on one device; shapes and dtypes as there.

    Attributes:
        colour, shape, digit, centre: int64 [tokens], what covers each merged token; 0 is nothing.
        place: float32 [tokens, 2].
    """

    kind: str
    grids: torch.Tensor
    pixels: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    digit: torch.Tensor
    centre: torch.Tensor
    place: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    looks: list[Look]


def on_device(batch: Batch, device: torch.device) -> TensorBatch:
    """The batch, copied to the device (on the CPU its arrays are shared)."""

    def move(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return TensorBatch(
        kind=batch.kind,
        grids=move(batch.grids),
        pixels=move(batch.pixels),
        colour=move(batch.cells.colour),
        shape=move(batch.cells.shape),
        digit=move(batch.cells.digit),
        centre=move(batch.cells.centre),
        place=move(batch.cells.place),
        input_ids=move(batch.input_ids),
        labels=move(batch.labels),
        weights=move(batch.weights),
        looks=batch.looks,
    )
