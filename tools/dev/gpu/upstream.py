"""transformers' encoder as it is, eager with sdpa, on a GPU or the CPU: what everything else is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, ServedGrids
from qwen3vl_edge.tools.dev.gpu.timing import device_seconds

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class UpstreamEncoder:
    """An `EncoderBackend` of it, without TF32.

    Args:
        dtype: a key of DTYPES.
        device: as torch names it.
    """

    name = "transformers"

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.precision, self.serves = dtype, ServedGrids((), dynamic=True)
        self._device, self._dtype = device, getattr(torch, DTYPES[dtype])
        self._module = load_torch_encoder(checkpoint, dtype=self._dtype, device=device, attention="sdpa")

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        """float16 in half types: numpy has no bfloat16, and as many bytes are copied for all."""
        import torch

        kind = torch.float32 if self.precision == "fp32" else torch.float16
        with torch.inference_mode():
            output = self._encode(*self._inputs(grid, pixel_values))
            embeds, *levels = (
                tensor.to(kind).cpu().numpy() for tensor in (output.pooler_output, *output.deepstack_features)
            )
        return Embeddings(embeds, tuple(levels))

    def device_seconds(self, grid: Grid, pixel_values: NDArray[np.float32]) -> float:
        """The GPU's own time of one run, its inputs and outputs staying there."""
        import torch

        inputs = self._inputs(grid, pixel_values)
        with torch.inference_mode():
            return device_seconds(lambda: self._encode(*inputs), self._device)

    def close(self) -> None:
        del self._module

    def _inputs(self, grid: Grid, pixel_values: NDArray[np.float32]) -> tuple[Any, Any]:
        import torch

        pixels = torch.from_numpy(pixel_values).to(self._device, self._dtype)
        return pixels, torch.tensor([grid.as_list()], device=self._device)

    def _encode(self, pixels: Any, places: Any) -> Any:
        return self._module(pixels, grid_thw=places)
