"""transformers' vision encoder from a checkpoint, without its language model.

The export's check, parity, the `pytorch` backend and the server's vision tower all use this module. torch and
transformers are imported when the encoder is loaded or run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.checkpoint_tensor import CheckpointTensor
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import CheckpointError

TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_torch_encoder(
    checkpoint: Checkpoint, *, dtype: Any = None, device: Any = "cpu", attention: str | None = None
) -> Any:
    """The model type's encoder (`Qwen3VLVisionModel`, or its like) with the checkpoint's weights, in eval mode.

    Reads the visual tensors alone, one at a time and each converted before the next, so that the encoder of a 235B
    checkpoint needs no more memory than a 2B's.

    Args:
        dtype: a `torch.dtype`; float32 by default.
        device: a `torch.device` or its name.
        attention: transformers' `attn_implementation`; None for its choice.

    Raises:
        CheckpointError: a shard is truncated or malformed, has no encoder, or a tensor has an unsupported dtype.
        RuntimeError: the tensors do not match the config's encoder (torch's `load_state_dict`).
    """
    import torch
    from transformers import AutoConfig, AutoModel, GenerationMixin  # noqa: F401 - torch 2.8 cannot import it on meta

    _ = checkpoint.visual_tensors  # its errors say more than transformers' of the same config
    dtype = dtype or torch.float32
    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True).vision_config
    with torch.device("meta"):
        encoder = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention)
    state = {name: tensor.to(dtype) for name, tensor in read_visual_tensors(checkpoint)}
    encoder.load_state_dict(state, strict=True, assign=True)
    # The rotary frequencies are computed from the config, not read from the checkpoint: they must not be on meta.
    encoder.rotary_pos_emb = type(encoder.rotary_pos_emb)(config)
    return encoder.to(device).eval()


def run_torch_encoder(encoder: Any, grid: Grid, pixel_values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Run a float32 encoder on the CPU.

    Args:
        pixel_values: float32 [t·h·w, channels·temporal·patch²].

    Returns:
        The outputs in the graphs' order: embeds, then the DeepStack levels, float32 [n, D] each.
    """
    import torch

    with torch.inference_mode():
        output = encoder(torch.from_numpy(pixel_values), grid_thw=torch.tensor([grid.as_list()]))
    return [tensor.numpy() for tensor in encoder_tensors(output)]


def encoder_tensors(output: Any) -> list[Any]:
    """Of what transformers' encoder returns: embeds, then the DeepStack levels; the latter not of every model type."""
    return [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]


def read_visual_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Name and tensor (`torch.Tensor`, as stored, on the CPU) of each tensor of the encoder; one in memory at a time.

    Raises:
        CheckpointError: a shard is truncated or malformed, has no encoder, or a tensor has an unsupported dtype.
    """
    for name, tensor in checkpoint.visual_tensors.items():
        yield name, _read_tensor(name, tensor)


def _read_tensor(name: str, tensor: CheckpointTensor) -> Any:
    import torch

    if tensor.entry.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"tensor visual.{name} has an unsupported dtype",
            field=name,
            expected=" or ".join(TORCH_DTYPES),
            got=tensor.entry.dtype,
        )
    # One copy out of the file's memory map, because torch accepts only writable buffers.
    raw = torch.frombuffer(bytearray(tensor.map()), dtype=getattr(torch, TORCH_DTYPES[tensor.entry.dtype]))
    return raw.reshape(tensor.entry.shape)
