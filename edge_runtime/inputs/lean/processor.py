"""Conversations of text and pictures to token ids and patches, without torch and transformers.

Clips, and checkpoints whose files need more than this, go to the reference (edge_runtime/inputs/prompt.py). The lean
path's patches are bit-identical to the reference's, so that answers, cache and parity evidence are the same on both.
`lean-uint8` runs the uint8 graphs instead: they compute the patch embedding with half of the multiplications, and so
round differently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.processor_files import (
    TOKENIZER_CONFIG,
    chat_template,
    image_processor_config,
    read_json_object,
)
from qwen3vl_edge.contract.bundle.tokenizer_identity import QWEN2_SPLIT, extra_tokens, is_qwen2
from qwen3vl_edge.contract.errors import BundleError, CheckpointError, InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend, PixelBackend
from qwen3vl_edge.edge_runtime.inputs.lean.chat_template import ChatTemplate
from qwen3vl_edge.edge_runtime.inputs.lean.patches import normalised_bytes, patch_values
from qwen3vl_edge.edge_runtime.inputs.lean.resize import bucket_image
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.messages import Message, checked_messages, hidden_media, media_parts
from qwen3vl_edge.edge_runtime.inputs.prompt import PreparedMedia, Prompt
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture, open_pictures

logger = logging.getLogger("edge")
PREPROCESS = {
    "auto": "lean where the bundle's files allow it, else reference",
    "lean": "pictures and text without torch and transformers",
    "lean-uint8": "the same, and pictures of a bucket as bytes into its uint8 graph",
    "reference": "qwen-vl-utils and the HF processor",
}
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
IMAGE_PROCESSORS = {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"}
# Classes for which transformers takes tokenizer.json as it is.
PLAIN_TOKENIZERS = {"TokenizersBackend", "PreTrainedTokenizerFast"}


@dataclass(frozen=True)
class LeanProcessor:
    """The part of a checkpoint's processor files that pictures and text need.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer`.
        takes_pixels: grids for which the encoder backend is given uint8 pixels instead of patches.
    """

    vision: VisionSpec
    preprocessing: Preprocessing
    template: ChatTemplate
    tokenizer: Any
    takes_pixels: Callable[[Grid], bool]


def load_lean_processor(bundle: Bundle, takes_pixels: Callable[[Grid], bool]) -> LeanProcessor:
    """The lean processor of a bundle.

    Raises:
        BundleError: the bundle needs a feature that only the reference has; names it.
        ImportError: jinja2 or tokenizers is not installed.
    """
    from jinja2 import TemplateError
    from tokenizers import Tokenizer

    folder, manifest = bundle.processor_path, bundle.manifest
    _check_images(folder, manifest.vision)
    _check_tokenizer(folder)
    try:
        template = ChatTemplate(_template(folder))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except TemplateError as error:
        raise _not_lean(folder, f"its chat template cannot be compiled ({error})") from None
    except Exception as error:  # tokenizers raises bare Exception
        if isinstance(error, BundleError):
            raise
        raise _not_lean(folder, f"tokenizer.json cannot be read ({error})") from None
    special = sorted(name for name in template.variables if name.endswith("_token"))
    if special:
        raise _not_lean(folder, f"its chat template reads {', '.join(special)}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return LeanProcessor(manifest.vision, manifest.preprocessing, template, tokenizer, takes_pixels)


def choose_lean(preprocess: str, bundle: Bundle, backend: EncoderBackend) -> LeanProcessor | None:
    """The lean processor; None where the reference preprocesses everything.

    Raises:
        BundleError: `preprocess` requires lean, and the bundle's files do not support it.
        InputError: `preprocess` requires lean, and a package is not installed.
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


def serves(messages: Sequence[Message]) -> bool:
    """Whether a conversation has no clip."""
    parts = (
        part
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )
    return not any(
        isinstance(part, dict) and (part.get("video") is not None or part.get("type") == "video") for part in parts
    )


def prepare_lean_prompt(
    messages: Sequence[Message], processor: LeanProcessor, policy: BucketPolicy, budget: MediaBudget | None = None
) -> Prompt:
    """Turn a conversation without clips into token ids and patches, bit-identical to `prepare_prompt`'s.

    Args:
        budget: what its pictures may cost; one is decoded at a time.

    Raises:
        InputError: a malformed message, or a picture that cannot be read.
        LimitError: pictures that cost too much.
        BucketError: no bucket serves a picture.
    """
    messages = checked_messages(messages)
    budget = budget or MediaBudget()
    parts = list(media_parts(messages))
    budget.add_media(len(parts))
    pictures = open_pictures(parts, budget)
    media = tuple(
        _media(part, picture, processor, policy, budget) for part, picture in zip(parts, pictures, strict=True)
    )
    rendered = processor.template.render(messages)
    if rendered.count(IMAGE_TOKEN) < len(media) and (error := hidden_media(messages)):
        raise error
    text = _expanded(rendered, [item.grid for item in media], processor.vision.merge_size)
    # As a batch: `encode` holds the interpreter, for 0.4 s where the text is as long as it may be.
    (encoding,) = processor.tokenizer.encode_batch([text])
    ids = np.array(encoding.ids, np.int64)
    return Prompt(text, ids, media, {})


def _media(
    part: dict[str, Any], picture: Picture, processor: LeanProcessor, policy: BucketPolicy, budget: MediaBudget
) -> PreparedMedia:
    budget.check()
    seen = picture.see()
    pixels, choice = bucket_image(seen.image, part, policy, budget)
    values = patch_values(pixels, choice.grid, processor.vision, normalised_bytes(processor.preprocessing))
    uint8_pixels = pixels if processor.takes_pixels(choice.grid) else None
    evidence = seen.decoding | policy.pixels.picture_evidence(part)
    return PreparedMedia("image", choice, EncoderInput(choice.grid, values, uint8_pixels), decoding=evidence)


def _expanded(text: str, grids: list[Grid], merge_size: int) -> str:
    """Each image's placeholder as often as the image has visual tokens.

    Raises:
        InputError: text of the conversation contains placeholders of its own.
    """
    pieces = text.split(IMAGE_TOKEN)
    if len(pieces) != len(grids) + 1 or VIDEO_TOKEN in text:
        raise InputError(
            "the conversation's text contains placeholders of pictures or clips",
            field="messages",
            expected=f"{len(grids)} {IMAGE_TOKEN}, no {VIDEO_TOKEN}",
            got=f"{len(pieces) - 1} and {text.count(VIDEO_TOKEN)}",
            remedy="Take them out of the text.",
        )
    filled = [IMAGE_TOKEN * grid.tokens(merge_size) for grid in grids]
    return pieces[0] + "".join(token + piece for token, piece in zip(filled, pieces[1:], strict=True))


def _no_grid(grid: Grid) -> bool:
    return False


def _template(folder: Path) -> str:
    try:
        template = chat_template(folder)
    except CheckpointError as error:
        raise _not_lean(folder, error.message) from None
    if template is None:
        raise _not_lean(folder, "it has no chat template")
    return template


def _check_images(folder: Path, vision: VisionSpec) -> None:
    try:
        values = image_processor_config(folder)
    except CheckpointError as error:
        raise _not_lean(folder, error.message) from None
    if values is None:
        raise _not_lean(folder, "it has no image processor")
    expected = {"do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    wrong = [name for name, value in expected.items() if values.get(name, value) != value]
    if values.get("image_processor_type") not in IMAGE_PROCESSORS:
        wrong.append("image_processor_type")
    if vision.merge_size != 2:  # the only one of qwen-vl-utils
        wrong.append("merge_size")
    if wrong:
        raise _not_lean(folder, f"its image processor's {', '.join(wrong)} is not supported by lean preprocessing")


def _check_tokenizer(folder: Path) -> None:
    """Compare the files with what transformers would build from them."""
    config, tokenizer = _read(folder / TOKENIZER_CONFIG), _read(folder / "tokenizer.json")
    plain = config.get("tokenizer_class") in PLAIN_TOKENIZERS
    options = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")
    if not (plain or is_qwen2(config)) or any(config.get(name) for name in options):
        raise _not_lean(folder, "its tokenizer is not Qwen2Tokenizer, or has an option of its own")
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    split = steps[0].get("pattern", {}).get("Regex") if steps else None
    if not plain and (split != QWEN2_SPLIT or (tokenizer.get("normalizer") or {}).get("type") != "NFC"):
        raise _not_lean(folder, "tokenizer.json splits text in another way than Qwen2Tokenizer")
    token_ids = {item["content"]: item["id"] for item in tokenizer.get("added_tokens", [])}
    added = {item["content"]: int(number) for number, item in config.get("added_tokens_decoder", {}).items()}
    named = [config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")]
    named = [item for item in [*named, *extra_tokens(config)] if item is not None]
    named = [item["content"] if isinstance(item, dict) else item for item in named]
    if not added.items() <= token_ids.items() or any(
        name not in token_ids for name in [*named, IMAGE_TOKEN, VIDEO_TOKEN]
    ):
        raise _not_lean(folder, "tokenizer_config.json adds tokens that tokenizer.json does not have")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except CheckpointError as error:
        raise _not_lean(path, error.message) from None


def _not_lean(path: Path, reason: str) -> BundleError:
    return BundleError(
        f"lean preprocessing cannot use {path.name}: {reason}",
        field="--preprocess",
        remedy="Take --preprocess reference.",
    )
