"""Conversations of text, pictures and clips to token ids and patches, without torch and transformers.

Cameras, and checkpoints whose files need more than this, go to the reference (edge_runtime/inputs/prompt.py). The lean
path's patches are bit-identical to the reference's, so that answers, cache and parity evidence are the same on both.
`lean-uint8` runs the uint8 graphs instead: they compute the patch embedding with half of the multiplications, and so
round differently.
"""

from __future__ import annotations

import json
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
from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend, PixelBackend
from qwen3vl_edge.edge_runtime.inputs.lean.chat_template import ChatTemplate
from qwen3vl_edge.edge_runtime.inputs.lean.clip_resize import resize_frames
from qwen3vl_edge.edge_runtime.inputs.lean.patches import byte_table, clip_patch_values, normalised_bytes, patch_values
from qwen3vl_edge.edge_runtime.inputs.lean.resize import bucket_image
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.messages import Message, checked_messages, hidden_media, kind_of, media_parts
from qwen3vl_edge.edge_runtime.inputs.prompt import VISION_DEFAULTS_NAME, PreparedMedia, Prompt
from qwen3vl_edge.edge_runtime.inputs.sized_clip import ClipPath, sized_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture, open_pictures

logger = logging.getLogger("edge")
PREPROCESS = {
    "auto": "lean where the bundle's files allow it, else reference",
    "lean": "pictures, clips and text without torch and transformers",
    "lean-uint8": "the same, and pictures of a bucket as bytes into its uint8 graph",
    "reference": "qwen-vl-utils and the HF processor",
}
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
_PLACEHOLDERS = re.compile(f"({re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)})")
IMAGE_PROCESSORS = {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"}
VIDEO_PROCESSORS = {"Qwen3VLVideoProcessor"}
TOKENIZERS = {"Qwen2Tokenizer", "Qwen2TokenizerFast"}
# How `Qwen2Tokenizer` of transformers splits text, regardless of tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class LeanProcessor:
    """The part of a checkpoint's processor files that pictures, clips and text need.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer`.
        image_defaults: keys such as `min_pixels` for parts that do not set them.
        takes_pixels: grids for which the encoder backend is given uint8 pixels instead of patches.
        clip_defaults: as `image_defaults`, of clips.
        clip_bytes: `byte_table` of clips; None where the video processor's files need more than this path has.
    """

    vision: VisionSpec
    preprocessing: Preprocessing
    template: ChatTemplate
    tokenizer: Any
    image_defaults: dict[str, Any]
    takes_pixels: Callable[[Grid], bool]
    clip_defaults: dict[str, Any]
    clip_bytes: NDArray[np.float32] | None

    def serves(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation has no camera's window, and no clip where clips need the reference."""
        parts = (
            part
            for message in messages
            if isinstance(message, dict) and isinstance(message.get("content"), list)
            for part in message["content"]
        )
        return not any(
            isinstance(part, dict)
            and (part.get("video") is not None or part.get("type") == "video")
            and (self.clip_bytes is None or isinstance(part.get("video"), Snapshot))
            for part in parts
        )


def load_lean_processor(bundle: Bundle, takes_pixels: Callable[[Grid], bool]) -> LeanProcessor:
    """The lean processor of a bundle.

    Raises:
        BundleError: the bundle needs a feature that only the reference has; names it.
        ImportError: jinja2 or tokenizers is not installed.
    """
    from jinja2 import TemplateError
    from tokenizers import Tokenizer

    folder, manifest = bundle.processor_path, bundle.manifest
    _check_images(_read(folder / "preprocessor_config.json"), manifest.vision)
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
    defaults = _read(folder / VISION_DEFAULTS_NAME) if (folder / VISION_DEFAULTS_NAME).is_file() else {}
    return LeanProcessor(
        manifest.vision,
        manifest.preprocessing,
        template,
        tokenizer,
        defaults.get("image", {}),
        takes_pixels,
        defaults.get("video", {}),
        _clip_bytes(folder, manifest.vision),
    )


def _clip_bytes(folder: Path, vision: VisionSpec) -> NDArray[np.float32] | None:
    """The table of a video processor; None, and why in the log, where it is not Qwen's as released."""
    path = folder / "video_preprocessor_config.json"
    try:
        # transformers 5 writes one file for all of a processor
        values = _read(path) if path.is_file() else _read(folder / "processor_config.json").get("video_processor", {})
    except BundleError as error:
        logger.info("clips need the reference preprocessing: %s", error)
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
    if wrong:
        logger.info("clips need the reference preprocessing: its video processor has another %s", ", ".join(wrong))
        return None
    half = (0.5,) * vision.in_channels  # IMAGENET_STANDARD_MEAN and _STD, the defaults of Qwen3VLVideoProcessor
    mean, std = values.get("image_mean", half), values.get("image_std", half)
    return byte_table(mean, std, values.get("rescale_factor", 1 / 255))


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
    parts = list(media_parts(messages))
    budget.add_media(len(parts))
    pictures = iter(open_pictures([part for part in parts if kind_of(part) == "image"], budget))
    media, expansions = [], []
    for part in parts:
        budget.check()
        if kind_of(part) == "image":
            item = _media(part, next(pictures), processor, policy, budget)
            expansions.append((IMAGE_TOKEN, IMAGE_TOKEN * item.grid.tokens(processor.vision.merge_size)))
        else:
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
    image, choice = bucket_image(seen.image, {**processor.image_defaults, **part}, policy)
    budget.add_visual_tokens(policy.tokens(choice.grid))
    pixels = np.asarray(image)
    values = patch_values(pixels, choice.grid, processor.vision, normalised_bytes(processor.preprocessing))
    uint8_pixels = pixels if processor.takes_pixels(choice.grid) else None
    return PreparedMedia("image", choice, EncoderInput(choice.grid, values, uint8_pixels), decoding=seen.decoding)


def _clip(
    part: dict[str, Any], processor: LeanProcessor, policy: BucketPolicy, budget: MediaBudget, clip_seconds: str
) -> tuple[PreparedMedia, list[float]]:
    """A clip, and the second of each temporal patch."""
    assert processor.clip_bytes is not None  # `serves`
    path = ClipPath(clip_seconds, resize_frames, pyav_alone=True)
    element = {**processor.clip_defaults, **part}
    clip = sized_clip(element, policy.geometry, policy.paid_by(budget), budget, path)
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
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return str(_read(folder / "chat_template.json")["chat_template"])


def _check_images(values: dict[str, Any], vision: VisionSpec) -> None:
    expected = {"do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    wrong = [name for name, value in expected.items() if values.get(name, value) != value]
    if values.get("image_processor_type") not in IMAGE_PROCESSORS:
        wrong.append("image_processor_type")
    if vision.merge_size != 2:  # the only one of qwen-vl-utils
        wrong.append("merge_size")
    if wrong:
        raise _not_lean(Path("preprocessor_config.json"), f"{', '.join(wrong)} not supported by lean preprocessing")


def _check_tokenizer(folder: Path) -> None:
    """Compare the files with what transformers would build from them."""
    config, tokenizer = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    if config.get("tokenizer_class") not in TOKENIZERS or config.get("add_prefix_space"):
        raise _not_lean(folder, "its tokenizer is not Qwen2Tokenizer")
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    split = steps[0].get("pattern", {}).get("Regex") if steps else None
    if split != SPLIT or (tokenizer.get("normalizer") or {}).get("type") != "NFC":
        raise _not_lean(folder, "tokenizer.json splits text in another way than Qwen2Tokenizer")
    token_ids = {item["content"]: item["id"] for item in tokenizer.get("added_tokens", [])}
    added = {item["content"]: int(number) for number, item in config.get("added_tokens_decoder", {}).items()}
    named = [config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")]
    named = [item["content"] if isinstance(item, dict) else item for item in named if item is not None]
    named += config.get("additional_special_tokens") or []
    if not added.items() <= token_ids.items() or any(
        name not in token_ids for name in [*named, IMAGE_TOKEN, VIDEO_TOKEN]
    ):
        raise _not_lean(folder, "tokenizer_config.json adds tokens that tokenizer.json does not have")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_lean(path, f"it cannot be read ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise _not_lean(path, "it is not a JSON object")
    return value


def _not_lean(path: Path, reason: str) -> BundleError:
    return BundleError(
        f"lean preprocessing cannot use {path.name}: {reason}",
        field="--preprocess",
        remedy="Take --preprocess reference.",
    )
