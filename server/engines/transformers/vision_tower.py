"""The vision encoder of the checkpoint, for `--allow-pixels`: it computes the unsplit model's embeddings of pictures.

It runs beside the unchanged language model, and its output is used like embeddings from a device.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoImageProcessor

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder
from qwen3vl_edge.contract.errors import CheckpointError, InputError
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image


class VisionTower:
    """`Qwen3VLVisionModel` on the language model's device and in its dtype, and the checkpoint's image processor."""

    def __init__(self, encoder: Any, processor: Any) -> None:
        self._encoder = encoder
        self._processor = processor
        self._lock = threading.Lock()  # one picture at a time, so that peak memory is bounded

    def encode(self, open_image: Callable[[], Image], check: Callable[[Grid], None]) -> MediaEmbeddings:
        """Embeddings of a picture.

        Args:
            open_image: decodes it into RGB.
            check: called with the grid before the encoder runs; raises if the grid is too large.

        Returns:
            float16; float32 for models in float32 and in bfloat16, whose values it represents exactly.

        Raises:
            InputError: the processor cannot resize it.
        """
        with self._lock, torch.inference_mode():
            inputs = self._patches(open_image())
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

    def _patches(self, image: Image) -> Any:
        try:
            return self._processor(images=[image], return_tensors="pt")
        except ValueError as error:  # such as sides of more than 1 to 200
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"picture cannot be preprocessed ({reason})",
                expected="sides of at most 1 to 200",
                got=f"{image.width}x{image.height}",
            ) from None


def load_vision_tower(checkpoint: Checkpoint, loaded: LoadedModel) -> VisionTower:
    """Load the visual tensors alone, and the image processor.

    Raises:
        CheckpointError: a file is missing, or the tensors are not the encoder's.
    """
    try:
        encoder = load_torch_encoder(checkpoint, dtype=loaded.dtype, device=loaded.device, attention=loaded.attention)
        processor = AutoImageProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many types; all mean that it cannot be loaded with these options
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the vision tower of {checkpoint.path} cannot be loaded ({type(error).__name__}: {reason})",
            field="--allow-pixels",
        ) from error
    return VisionTower(encoder, processor)
