"""One tensor of a checkpoint: where it lies, its bytes, and its values as float32."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.formats.safetensors_layout import TensorEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT_DTYPES = ("F32", "F16", "BF16")  # what encoders are read from


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint and the shard that holds it."""

    shard: Path
    entry: TensorEntry
    data_start: int

    def read(self, count: int | None = None, start: int = 0) -> bytes:
        """`count` bytes of the tensor from `start` on, or all of them."""
        left = self.entry.nbytes - start
        with self.shard.open("rb") as file:
            file.seek(self.data_start + self.entry.begin + start)
            return file.read(left if count is None else min(count, left))

    def map(self) -> memoryview:
        """The tensor's bytes as a read-only memory map, so that copying it costs no heap."""
        with self.shard.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self.data_start + self.entry.begin
        return memoryview(mapped)[start : start + self.entry.nbytes]


def to_float32(raw: memoryview | bytes, dtype: str) -> NDArray[np.float32]:
    """Values of a safetensors dtype F32, F16 or BF16 as float32, flat; a view where they are float32 already."""
    import numpy as np

    if dtype == "BF16":  # bfloat16 is the upper half of float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32, copy=False)
