"""Conversations of text, pictures and clips to token ids and patches, without torch and transformers.

Cameras, and checkpoints whose files need more than this, go to the reference (edge_runtime/inputs/prompt.py). The lean
path's patches are bit-identical to the reference's, so that answers, cache and parity evidence are the same on both.
`lean-uint8` runs the uint8 graphs instead: they compute the patch embedding with half of the multiplications, and so
round differently.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.processor_files import (
    chat_template,
    image_processor_config,
    video_normalization,
    video_processor_config,
)
from qwen3vl_edge.contract.errors import BundleError, CheckpointError, InputError
from qwen3vl_edge.contract.model_types import MODEL_TYPES
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend, PixelBackend
from qwen3vl_edge.edge_runtime.inputs.lean.chat_template import ChatTemplate
from qwen3vl_edge.edge_runtime.inputs.lean.patches import byte_table, clip_patch_values, normalised_bytes, patch_values
from qwen3vl_edge.edge_runtime.inputs.lean.resize import bucket_image, frame_resize
from qwen3vl_edge.edge_runtime.inputs.lean.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, load_tokenizer, not_lean
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.messages import (
    Message,
    checked_messages,
    clip_sources,
    errors_at,
    hidden_media,
    kind_of,
    placed_media_parts,
)
from qwen3vl_edge.edge_runtime.inputs.prompt import PreparedMedia, Prompt
from qwen3vl_edge.edge_runtime.inputs.sized_clip import ClipPath, sized_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture, open_pictures

logger = logging.getLogger("edge")
PREPROCESS = {
    "auto": "lean where the bundle's files allow it, else reference",
    "lean": "pictures, clips and text without torch and transformers",
    "lean-uint8": "the same, and pictures of a bucket as bytes into its uint8 graph",
    "reference": "torchvision or qwen-vl-utils, and the HF processor",
}
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
_PLACEHOLDERS = re.compile(f"({re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)})")
IMAGE_PROCESSORS = {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"}
VIDEO_PROCESSORS = {"Qwen3VLVideoProcessor"}


@dataclass(frozen=True)
class LeanProcessor:
    """The part of a checkpoint's processor files that pictures, clips and text need.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer`.
        takes_pixels: grids for which the encoder backend is given uint8 pixels instead of patches.
        clip_bytes: `byte_table` of clips; None where the video processor's files need more than this path has.
    """

    vision: VisionSpec
    preprocessing: Preprocessing
    template: ChatTemplate
    tokenizer: Any
    takes_pixels: Callable[[Grid], bool]
    clip_bytes: NDArray[np.float32] | None

    def serves(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation has no camera's window, and no clip where clips need the reference."""
        sources = clip_sources(messages)
        return not any(self.clip_bytes is None or isinstance(source, Snapshot) for source in sources)


def load_lean_processor(bundle: Bundle, takes_pixels: Callable[[Grid], bool]) -> LeanProcessor:
    """The lean processor of a bundle.

    Raises:
        BundleError: the bundle needs a feature that only the reference has; names it.
        ImportError: jinja2 or tokenizers is not installed.
    """
    from jinja2 import TemplateError

    folder, manifest = bundle.processor_path, bundle.manifest
    _check_images(folder, manifest.vision)
    kind = MODEL_TYPES.get(manifest.model.model_type)
    if kind is None:
        raise not_lean(folder, f"its model type {manifest.model.model_type} is not of this release")
    tokenizer = load_tokenizer(folder, kind)
    try:
        template = ChatTemplate(_template(folder))
    except TemplateError as error:
        raise not_lean(folder, f"its chat template cannot be compiled ({error})") from None
    special = sorted(name for name in template.variables if name.endswith("_token"))
    if special:
        raise not_lean(folder, f"its chat template reads {', '.join(special)}")
    clip_bytes = _clip_bytes(folder, manifest.vision)
    return LeanProcessor(manifest.vision, manifest.preprocessing, template, tokenizer, takes_pixels, clip_bytes)


def _clip_bytes(folder: Path, vision: VisionSpec) -> NDArray[np.float32] | None:
    """The table of a video processor; None, and why in the log, where it is not Qwen's as released."""
    try:
        values, figures = video_processor_config(folder), video_normalization(folder)
    except CheckpointError as error:
        logger.info("clips need the reference preprocessing: %s", error)
        return None
    if values is None or figures is None:
        logger.info("clips need the reference preprocessing: there is no video processor")
        return None
    expected = {
        "do_rescale": True,
        "do_normalize": True,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.merge_size,
    }
    wrong = [name for name, value in expected.items() if values.get(name, value) != value]
    if values.get("video_processor_type") not in VIDEO_PROCESSORS:
        wrong.append("video_processor_type")
    wrong += [
        name
        for name, channels in (("image_mean", figures.mean), ("image_std", figures.std))
        if len(channels) != vision.in_channels
    ]
    if wrong:
        logger.info("clips need the reference preprocessing: its video processor has another %s", ", ".join(wrong))
        return None
    return byte_table(figures.mean, figures.std, figures.rescale_factor)


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


def prepare_lean_prompt(
    messages: Sequence[Message],
    processor: LeanProcessor,
    policy: BucketPolicy,
    budget: MediaBudget | None = None,
    clip_seconds: str = "average",
) -> Prompt:
    """Turn a conversation into token ids and patches, bit-identical to `prepare_prompt`'s.

    Args:
        budget: what its media may cost; one is decoded at a time.
        clip_seconds: a key of `CLIP_SECONDS` in `clip_reader.py`.

    Raises:
        InputError: a malformed message, or media that cannot be read.
        LimitError: media that cost too much.
        BucketError: no bucket serves a picture.
    """
    messages = checked_messages(messages)
    budget = budget or MediaBudget()
    parts = list(placed_media_parts(messages))
    budget.add_media(len(parts))
    pictures = iter(open_pictures([item for item in parts if kind_of(item[1]) == "image"], budget))
    media, expansions = [], []
    for where, part in parts:
        budget.check()
        if kind_of(part) == "image":
            with errors_at(where):
                item = _media(part, next(pictures), processor, policy, budget)
            expansions.append((IMAGE_TOKEN, IMAGE_TOKEN * item.grid.tokens(processor.vision.merge_size)))
        else:
            with errors_at(where):
                item, seconds = _clip(part, processor, policy, budget, clip_seconds)
            expansions.append((VIDEO_TOKEN, _clip_text(item.grid, seconds, processor.vision.merge_size)))
        media.append(item)
    rendered = processor.template.render(messages)
    if len(_PLACEHOLDERS.findall(rendered)) < len(media) and (error := hidden_media(messages)):
        raise error
    text = _expanded(rendered, expansions)
    # As a batch: `encode` holds the interpreter, for 0.4 s where the text is as long as it may be.
    (encoding,) = processor.tokenizer.encode_batch([text])
    ids = np.array(encoding.ids, np.int64)
    return Prompt(text, ids, tuple(media), {})


def _media(
    part: dict[str, Any], picture: Picture, processor: LeanProcessor, policy: BucketPolicy, budget: MediaBudget
) -> PreparedMedia:
    seen = picture.see()
    pixels, choice = bucket_image(seen.image, part, policy, budget)
    values = patch_values(pixels, choice.grid, processor.vision, normalised_bytes(processor.preprocessing))
    uint8_pixels = pixels if processor.takes_pixels(choice.grid) else None
    evidence = seen.decoding | policy.pixels.picture_evidence(part)
    return PreparedMedia("image", choice, EncoderInput(choice.grid, values, uint8_pixels), decoding=evidence)


def _clip(
    part: dict[str, Any], processor: LeanProcessor, policy: BucketPolicy, budget: MediaBudget, clip_seconds: str
) -> tuple[PreparedMedia, list[float]]:
    """A clip, and the second of each temporal patch."""
    assert processor.clip_bytes is not None  # `serves`
    path = ClipPath(clip_seconds, frame_resize(policy.pixels), pyav_alone=True)
    clip = sized_clip(part, policy.paid_by(budget), budget, path)
    grid, vision = clip.choice.grid, processor.vision
    values = clip_patch_values(clip.frames, grid, vision, processor.clip_bytes)
    item = PreparedMedia("video", clip.choice, EncoderInput(grid, values), decoding=clip.decoding)
    return item, _patch_seconds(clip.metadata, vision.temporal_patch_size)


def _patch_seconds(metadata: dict[str, Any], frames: int) -> list[float]:
    """The second of each temporal patch of so many frames, as `_calculate_timestamps` of transformers has it."""
    indices = list(metadata["frames_indices"])
    indices += indices[-1:] * (-len(indices) % frames)
    seconds = [index / metadata["fps"] for index in indices]
    return [(seconds[at] + seconds[at + frames - 1]) / 2 for at in range(0, len(seconds), frames)]


def _clip_text(grid: Grid, seconds: list[float], merge_size: int) -> str:
    """What `replace_video_token` of transformers' Qwen3VLProcessor writes in place of a clip's token."""
    tokens = VIDEO_TOKEN * (grid.patches_per_frame // merge_size**2)
    return "".join(f"<{second:.1f} seconds>{VISION_START}{tokens}{VISION_END}" for second in seconds)


def _expanded(text: str, expansions: list[tuple[str, str]]) -> str:
    """Each placeholder in place of which its picture's or clip's tokens stand.

    Args:
        expansions: in the order of the conversation: the placeholder, and what it becomes.

    Raises:
        InputError: text of the conversation contains placeholders of its own.
    """
    found = _PLACEHOLDERS.findall(text)
    if found != [placeholder for placeholder, _ in expansions]:
        pictures = sum(placeholder == IMAGE_TOKEN for placeholder, _ in expansions)
        raise InputError(
            "the conversation's text contains placeholders of pictures or clips",
            field="messages",
            expected=f"{pictures} {IMAGE_TOKEN} and {len(expansions) - pictures} {VIDEO_TOKEN}, in order",
            got=f"{found.count(IMAGE_TOKEN)} and {found.count(VIDEO_TOKEN)}",
            remedy="Take them out of the text.",
        )
    pieces = _PLACEHOLDERS.split(text)
    return pieces[0] + "".join(filled + piece for (_, filled), piece in zip(expansions, pieces[2::2], strict=True))


def _no_grid(grid: Grid) -> bool:
    return False


def _template(folder: Path) -> str:
    try:
        template = chat_template(folder)
    except CheckpointError as error:
        raise not_lean(folder, error.message) from None
    if template is None:
        raise not_lean(folder, "it has no chat template")
    return template


def _check_images(folder: Path, vision: VisionSpec) -> None:
    try:
        values = image_processor_config(folder)
    except CheckpointError as error:
        raise not_lean(folder, error.message) from None
    if values is None:
        raise not_lean(folder, "it has no image processor")
    expected = {"do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    wrong = [name for name, value in expected.items() if values.get(name, value) != value]
    if values.get("image_processor_type") not in IMAGE_PROCESSORS:
        wrong.append("image_processor_type")
    if vision.merge_size != 2:  # the only one of qwen-vl-utils
        wrong.append("merge_size")
    if wrong:
        raise not_lean(folder, f"its image processor's {', '.join(wrong)} is not supported by lean preprocessing")
