"""What stands for CUDA graphs where there is no GPU: the same sizes, each step called, the first time after a trial."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CalledSteps:
    """`CapturedSteps` without a capture.

    Attributes:
        keys: in the order of the calls: memory, columns of the slab, rows and columns of the step.
    """

    failed = None

    def __init__(self) -> None:
        self.keys: list[tuple[int, ...]] = []

    def run(self, key: tuple[int, ...], step: Callable[[], torch.Tensor], trial: Callable[[], object]) -> torch.Tensor:
        """The step's result."""
        if key not in self.keys:
            trial()
        self.keys.append(key)
        return step()
