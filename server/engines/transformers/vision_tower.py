"""The vision encoder of the checkpoint, for `--allow-pixels`: it computes the unsplit model's embeddings of pictures.

It runs beside the unchanged language model, and its output is used like embeddings from a device.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize
from transformers import AutoImageProcessor

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.torch_encoder import encoder_tensors, load_torch_encoder
from qwen3vl_edge.contract.errors import CheckpointError, ContractError, InputError
from qwen3vl_edge.contract.pixels.from_checkpoint import read_pixel_policy
from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, SIDES, PixelPolicy
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL.Image import Image


class VisionTower:
    """The vision encoder on the language model's device and in its dtype, and the checkpoint's image processor."""

    def __init__(self, encoder: Any, processor: Any, policy: PixelPolicy) -> None:
        self._encoder = encoder
        self._processor = processor
        self.policy = policy
        self._lock = threading.Lock()  # one picture at a time, so that peak memory is bounded

    def encode(
        self,
        open_image: Callable[[], Image],
        check: Callable[[Grid], None],
        policy: PixelPolicy,
        given: Mapping[str, Any],
    ) -> MediaEmbeddings:
        """Embeddings of a picture.

        Args:
            open_image: decodes it into RGB.
            check: called with the grid before the picture is resized; raises if the grid is too large.
            policy: of the request.
            given: the keys of the picture's part, as `PixelPolicy.picture_size` takes them.

        Returns:
            float16; float32 for models in float32 and in bfloat16, whose values it represents exactly.

        Raises:
            InputError: the processor cannot resize it.
        """
        with self._lock, torch.inference_mode():
            image = open_image()
            try:
                height, width = policy.picture_size(image.height, image.width, given)
            except ContractError:
                raise
            except ValueError as error:
                raise _unusable(image, error) from None
            patch = self._processor.patch_size
            check(grid := Grid(1, height // patch, width // patch))
            inputs = self._patches(image, height, width, policy, given)
            grids = inputs["image_grid_thw"]
            parameter = next(self._encoder.parameters())
            pixels = inputs["pixel_values"].to(device=parameter.device, dtype=parameter.dtype)
            output = self._encoder(pixels, grid_thw=grids.to(parameter.device))
            dtype = torch.float16 if parameter.dtype == torch.float16 else torch.float32
            embeds, *levels = (array.to(device="cpu", dtype=dtype).numpy() for array in encoder_tensors(output))
        return MediaEmbeddings("image", grid, embeds, tuple(levels))

    def _patches(self, image: Image, height: int, width: int, policy: PixelPolicy, given: Mapping[str, Any]) -> Any:
        try:
            if policy.name == CHECKPOINT and not given.keys() & SIDES:  # transformers' own resizing
                limits = policy.picture_limits(given)
                size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
                return self._processor(images=[image], size=size, return_tensors="pt")
            if policy.resizes_bytes:
                tensor = resize(pil_to_tensor(image), [height, width], InterpolationMode.BICUBIC, antialias=True)
                return self._processor(images=[tensor], do_resize=False, return_tensors="pt")
            # As qwen-vl-utils resizes: Pillow's default for RGB is bicubic.
            return self._processor(images=[image.resize((width, height))], do_resize=False, return_tensors="pt")
        except ValueError as error:
            raise _unusable(image, error) from None


def _unusable(image: Image, error: ValueError) -> InputError:
    """Such as sides of more than 1 to 200."""
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"picture cannot be preprocessed ({reason})",
        expected="sides of at most 1 to 200",
        got=f"{image.width}x{image.height}",
    )


def load_vision_tower(checkpoint: Checkpoint, loaded: LoadedModel, pixel_policy: str = CHECKPOINT) -> VisionTower:
    """Load the visual tensors alone, and the image processor.

    Args:
        pixel_policy: a key of `PIXEL_POLICIES`.

    Raises:
        CheckpointError: a file is missing, or the tensors are not the encoder's.
    """
    try:
        encoder = load_torch_encoder(checkpoint, dtype=loaded.dtype, device=loaded.device, attention=loaded.attention)
        processor = AutoImageProcessor.from_pretrained(checkpoint.path, local_files_only=True)
        policy = read_pixel_policy(checkpoint.path, pixel_policy)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many types; all mean that it cannot be loaded with these options
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the vision tower of {checkpoint.path} cannot be loaded ({type(error).__name__}: {reason})",
            field="--allow-pixels",
        ) from error
    return VisionTower(encoder, processor, policy)
