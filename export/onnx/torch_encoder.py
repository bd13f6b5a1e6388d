"""The oracle of the export check: transformers' own encoder in fp32, without the language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.export.onnx.weights import read_float32


def load_torch_encoder(checkpoint: Checkpoint) -> Any:
    """`Qwen3VLVisionModel` in fp32, eval mode, with the checkpoint's visual tensors and nothing else."""
    from transformers import AutoConfig, AutoModel

    vision = AutoConfig.from_pretrained(checkpoint.path).vision_config
    with torch.device("meta"):
        encoder = AutoModel.from_config(vision, dtype=torch.float32)
    state = {name: torch.from_numpy(read_float32(tensor).copy()) for name, tensor in checkpoint.visual_tensors.items()}
    encoder.load_state_dict(state, strict=True, assign=True)
    # Its frequencies are not in the checkpoint but computed from the config, so not on the meta device.
    encoder.rotary_pos_emb = type(encoder.rotary_pos_emb)(vision)
    return encoder.eval()


def run_torch_encoder(encoder: Any, grid: Grid, pixel_values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Outputs in the graphs' order: embeds, then the DeepStack levels, float32 [n, D] each."""
    with torch.inference_mode():
        output = encoder(torch.from_numpy(pixel_values), grid_thw=torch.tensor([grid.as_list()]))
    return [output.pooler_output.numpy(), *(level.numpy() for level in output.deepstack_features)]
