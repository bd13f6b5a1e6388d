"""Which way a bundle's pictures are prepared.

The lean path gives the encoder the very patches that the reference does, to the bit, so that the answers, the cache and
every parity proof are the same on both. `lean-uint8` runs the uint8 graphs instead: they compute the patch embedding
in half the products, and so round differently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend, PixelBackend
from qwen3vl_edge.edge_runtime.inputs.lean.processor import LeanProcessor, load_lean_processor

logger = logging.getLogger("edge")
PREPROCESS = {
    "auto": "lean where the bundle's files allow it, else reference",
    "lean": "pictures and text without torch and transformers",
    "lean-uint8": "the same, and pictures of a bucket as bytes into its uint8 graph",
    "reference": "qwen-vl-utils and the HF processor",
}


def choose_lean(preprocess: str, bundle: Bundle, backend: EncoderBackend) -> LeanProcessor | None:
    """The lean processor, None where the reference prepares everything.

    Raises:
        BundleError: lean asked for, and the bundle's files do not allow it.
        InputError: lean asked for, and a package is not installed.
    """
    if preprocess == "reference":
        return None
    takes_pixels: Callable[[Grid], bool] = _no_grid
    if preprocess == "lean-uint8":
        if not isinstance(backend, PixelBackend):
            raise InputError(
                f"backend {backend.name} has no uint8 graphs",
                field="--preprocess",
                got=preprocess,
                remedy="Take --preprocess lean, or --backend onnxruntime or openvino.",
            )
        takes_pixels = backend.takes_pixels
    try:
        return load_lean_processor(bundle, takes_pixels)
    except BundleError as error:
        if preprocess != "auto":
            raise
        logger.info("reference preprocessing: %s", error)
    except ImportError as error:
        if preprocess != "auto":
            raise InputError(
                f"lean preprocessing needs a package that is not installed ({error.name})",
                field="--preprocess",
                remedy="Install it with: pip install 'qwen3vl-edge[edge-lean]'",
            ) from None
    return None


def _no_grid(grid: Grid) -> bool:
    return False
