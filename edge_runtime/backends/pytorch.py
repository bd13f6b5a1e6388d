"""The encoder as transformers runs it, in fp32: parity's reference, and a backend for machines without ONNX Runtime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_model_of
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder, run_torch_encoder
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import (
    BackendOptions,
    Embeddings,
    EncoderBackend,
    ServedGrids,
    bundle_serves,
)


class PytorchBackend:
    """`Qwen3VLVisionModel` alone, its weights read without the language model's.

    Attributes:
        module: the `torch.nn.Module`.
    """

    name = "pytorch"
    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, serves: ServedGrids = ServedGrids((), dynamic=True)) -> None:
        self.serves = serves
        self.module = load_torch_encoder(checkpoint)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        embeds, *deepstack = run_torch_encoder(self.module, grid, pixel_values)
        return Embeddings(embeds, tuple(deepstack))

    def close(self) -> None:
        del self.module


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
