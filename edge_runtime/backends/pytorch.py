"""The encoder as transformers runs it, in fp32: the oracle, and a backend for machines without ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, CheckpointTensor
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_model_of
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import (
    BackendOptions,
    Embeddings,
    EncoderBackend,
    ServedGrids,
    bundle_serves,
)

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class PytorchBackend:
    """`Qwen3VLVisionModel` alone, its weights read without the language model's."""

    name = "pytorch"
    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, serves: ServedGrids = ServedGrids((), dynamic=True)) -> None:
        self.serves = serves
        self.encoder = load_encoder(checkpoint)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        with torch.inference_mode():
            output = self.encoder(torch.from_numpy(pixel_values), grid_thw=torch.tensor([grid.as_list()]))
        return Embeddings(output.pooler_output.numpy(), tuple(level.numpy() for level in output.deepstack_features))

    def close(self) -> None:
        del self.encoder


def load_encoder(checkpoint: Checkpoint) -> Any:
    """`Qwen3VLVisionModel` in fp32 with the checkpoint's visual weights, in eval mode.

    Reads the visual tensors alone, so that the encoder of a 235B checkpoint needs no more memory than a 2B's.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(checkpoint.path)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config.vision_config, dtype=torch.float32)
    state = {name: _read(tensor) for name, tensor in checkpoint.visual_tensors.items()}
    encoder.load_state_dict(state, strict=True, assign=True)
    # Its frequencies are not in the checkpoint but computed from the config, so not on the meta device.
    encoder.rotary_pos_emb = type(encoder.rotary_pos_emb)(config.vision_config)
    return encoder.eval()


def _read(tensor: CheckpointTensor) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(tensor.read()), dtype=_TORCH_DTYPES[tensor.entry.dtype])
    return raw.reshape(tensor.entry.shape).to(torch.float32)


def load(bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load the PyTorch encoder of the bundle's model.

    Raises:
        InputError: no checkpoint given.
        CheckpointError: it is missing.
        ModelMismatchError: the checkpoint is not the one that the bundle was exported from.
    """
    if options.model is None:
        raise InputError("backend pytorch needs the checkpoint", field="--model", remedy="Give --model FOLDER.")
    checkpoint = open_model_of(bundle, str(options.model))
    return PytorchBackend(checkpoint, bundle_serves(bundle, options.precision))
