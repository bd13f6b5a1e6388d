"""The vision encoder of the checkpoint, for `--allow-pixels`: pictures to the embeddings that the unsplit model has.

It stands beside the language model, which stays as it is: what it makes goes the way of embeddings from a device.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, CheckpointTensor
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class VisionTower:
    """`Qwen3VLVisionModel` on the language model's device and in its dtype, and the checkpoint's image processor."""

    def __init__(self, encoder: Any, processor: Any) -> None:
        self._encoder = encoder
        self._processor = processor
        self._lock = threading.Lock()  # one picture at a time, so that memory has a known most

    def encode(self, open_image: Callable[[], Image], check: Callable[[Grid], None]) -> MediaEmbeddings:
        """Embeddings of a picture.

        Args:
            open_image: decodes it into RGB.
            check: is given the grid before the encoder runs, and raises where it is too large.

        Returns:
            float16, or float32 for models in float32 and bfloat16, which it holds exactly.
        """
        with self._lock, torch.inference_mode():
            inputs = self._processor(images=[open_image()], return_tensors="pt")
            grids = inputs["image_grid_thw"]
            grid = Grid(*(int(number) for number in grids[0]))
            check(grid)
            parameter = next(self._encoder.parameters())
            pixels = inputs["pixel_values"].to(device=parameter.device, dtype=parameter.dtype)
            output = self._encoder(pixels, grid_thw=grids.to(parameter.device))
            dtype = torch.float16 if parameter.dtype == torch.float16 else torch.float32
            embeds, *levels = (
                array.to(device="cpu", dtype=dtype).numpy()
                for array in (output.pooler_output, *output.deepstack_features)
            )
        return MediaEmbeddings("image", grid, embeds, tuple(levels))


def load_vision_tower(checkpoint: Checkpoint, loaded: LoadedModel) -> VisionTower:
    """Load the visual tensors alone, and the image processor.

    Raises:
        CheckpointError: a file is missing, or the tensors are not the encoder's.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True).vision_config
        with torch.device("meta"):
            encoder = AutoModel.from_config(config, dtype=loaded.dtype, attn_implementation=loaded.attention)
        state = {name: _read(tensor).to(loaded.dtype) for name, tensor in checkpoint.visual_tensors.items()}
        encoder.load_state_dict(state, strict=True, assign=True)
        # Its frequencies are not in the checkpoint but computed from the config, so not on the meta device.
        encoder.rotary_pos_emb = type(encoder.rotary_pos_emb)(config)
        processor = AutoImageProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many kinds; all mean that it cannot be loaded so
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the vision tower of {checkpoint.path} cannot be loaded ({type(error).__name__}: {reason})",
            field="--allow-pixels",
        ) from error
    return VisionTower(encoder.to(loaded.device).eval(), processor)


def _read(tensor: CheckpointTensor) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(tensor.read()), dtype=_DTYPES[tensor.entry.dtype])
    return raw.reshape(tensor.entry.shape)
