"""The encoder as transformers runs it, in the forms that the engines are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.checkpoint import open_checkpoint
from contract.grid import Grid
from edge_runtime.backends.pytorch import load_encoder
from tools.bench.candidate import Candidate


def pytorch_candidates(model: Path, grid: Grid, threads: int) -> dict[str, Candidate]:
    """Eager fp32 and bf16 with sdpa, and bf16 compiled; on the GPU where there is one."""
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = open_checkpoint(str(model))
    single = load_encoder(checkpoint).to(device)
    half = load_encoder(checkpoint).to(device, torch.bfloat16)
    found = {"pytorch fp32": _runner(single, grid, device), "pytorch bf16": _runner(half, grid, device)}
    if device.type == "cuda":
        found["pytorch bf16 compiled"] = _runner(torch.compile(half), grid, device)
    return found


def _runner(encoder: Any, grid: Grid, device: torch.device) -> Candidate:
    places = torch.tensor([grid.as_list()], device=device)
    kind = next(encoder.parameters()).dtype

    def run(pixels: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            output = encoder(torch.from_numpy(pixels).to(device, kind), grid_thw=places)
            return [tensor.cpu() for tensor in (output.pooler_output, *output.deepstack_features)]

    def device_seconds(pixels: NDArray[np.float32]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(pixels)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return Candidate(run, device_seconds if device.type == "cuda" else None)
