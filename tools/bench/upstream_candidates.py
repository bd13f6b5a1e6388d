"""The encoder as transformers' own ONNX exporter writes it, run by ONNX Runtime: the peer to measure by.

Needs `onnxscript` in the version that transformers.exporters asks for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.checkpoint import open_checkpoint
from contract.errors import InputError
from contract.grid import Grid
from contract.manifest import VisionSpec
from edge_runtime.backends.pytorch import load_encoder
from tools.bench.candidate import Candidate


def upstream_candidate(model: Path, spec: VisionSpec, grid: Grid, threads: int) -> Candidate:
    """`transformers.exporters.OnnxExporter` in fp32, its default optimizations, on ONNX Runtime's CPU provider.

    Raises:
        InputError: the exporter's own dependencies are not installed.
    """
    import onnxruntime as ort
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    try:
        exporter = OnnxExporter()
    except ImportError as error:
        raise InputError(f"upstream's exporter does not run here: {error}", field="onnxscript") from None
    inputs = {
        "hidden_states": torch.zeros(grid.patches, spec.patch_values),
        "grid_thw": torch.tensor([grid.as_list()]),
    }
    exported = exporter.export(load_encoder(open_checkpoint(str(model))), inputs, config=OnnxConfig())
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="qwen3vl-upstream-") as folder:
        exported.save_pretrained(folder)
        path = str(Path(folder) / "model.onnx")
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    tables = _tables(spec, grid, [item.name for item in session.get_inputs()])

    def run(pixels: NDArray[np.float32]) -> object:
        return session.run(None, {"hidden_states": pixels, **tables})

    return Candidate(run)


def _tables(spec: VisionSpec, grid: Grid, wanted: list[str]) -> dict[str, NDArray[Any]]:
    """What upstream's graph takes besides pixels: computed outside of it, and so outside of the timing."""
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    places = torch.tensor([grid.as_list()])
    side = int(spec.num_position_embeddings**0.5)
    indices, weights = get_vision_interpolation_indices_and_weights(
        places, side, mode="bilinear", align_corners=True, spatial_merge_size=spec.merge_size
    )
    found = {
        "grid_thw": places.numpy(),
        "cu_seqlens": (np.arange(grid.t + 1) * grid.patches_per_frame).astype(np.int32),
        "position_ids": get_vision_position_ids(places, spec.merge_size).numpy(),
        "interp_indices": indices.numpy(),
        "interp_weights": weights.numpy(),
    }
    return {name: found[name] for name in wanted if name in found}
