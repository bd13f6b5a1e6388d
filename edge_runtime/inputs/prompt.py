"""Messages to token ids and patches, through the checkpoint's own chat template and processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.buckets import BucketChoice
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.processor_files import chat_template
from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy, FetchedMedia, fetch_media
from qwen3vl_edge.edge_runtime.inputs.messages import Message, checked_messages, hidden_media
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget


@dataclass(frozen=True)
class PreparedMedia:
    """One image or clip, ready for the encoder.

    Attributes:
        input: the encoder's input; without any patches where there is a window.
        window: a camera's window, whose temporal patches are encoded once for all requests.
        decoding: what was done to it as it was decoded, for the evidence.
    """

    kind: str
    choice: BucketChoice
    input: EncoderInput
    window: Snapshot | None = None
    decoding: dict[str, str] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return self.choice.grid


@dataclass(frozen=True)
class Prompt:
    """A conversation as token ids and patches.

    Attributes:
        input_ids: int64 [L] with visual placeholders expanded.
        media: in the order of the conversation.
        inputs: the HF processor's whole output (torch), for the unsplit model; empty from the lean path, and not usable
            where a camera's window is a part of the prompt.
    """

    text: str
    input_ids: NDArray[np.int64]
    media: tuple[PreparedMedia, ...]
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Processor:
    """The HF processor of a folder."""

    hf: Any


def load_processor(folder: Path) -> Processor:
    """Load the processor files of a bundle or checkpoint.

    Raises:
        BundleError: files missing or unreadable.
        InputError: its packages are not installed.
    """
    try:
        import qwen_vl_utils  # noqa: F401 - needed later; a missing package is reported now
        import torch  # noqa: F401 - transformers imports without it and then has no processors
        from transformers import AutoProcessor
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(
            f"clips and the reference preprocessing need a package that is not installed ({error.name or error})",
            field="preprocess",
            remedy="Install it with: pip install 'qwen3vl-edge[edge]'",
        ) from None

    logging.disable_progress_bar()
    try:
        hf = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others for bad folders
        reason = str(error).split("\n")[0][:160]
        raise BundleError(f"processor files in {folder} cannot be loaded ({reason})", field=str(folder)) from None
    if hf.chat_template is None:  # transformers' processor does not look at the tokenizer's
        hf.chat_template = chat_template(folder)
    if getattr(hf.video_processor, "cap_pixels_per_frame", True) is None:
        hf.video_processor.cap_pixels_per_frame = True  # without effect here: clips are resized before
    return Processor(hf)


def prepare_prompt(
    messages: Sequence[Message],
    processor: Processor,
    policy: BucketPolicy,
    budget: MediaBudget | None = None,
    clip_seconds: str = "average",
) -> Prompt:
    """Turn a conversation into token ids and patches.

    Args:
        budget: what its media may cost; by default what a device's may.
        clip_seconds: a key of `CLIP_SECONDS` in `clip_reader.py`.

    Raises:
        InputError: a malformed message, or media that cannot be read.
        LimitError: media that cost too much.
        BucketError: no bucket serves a picture.
    """
    messages = checked_messages(messages)
    fetched = fetch_media(messages, policy, budget or MediaBudget(), clip_seconds)
    if processor.hf.chat_template is None:
        raise BundleError(
            "the checkpoint has no chat template",
            field="chat_template.jinja",
            remedy="Copy chat_template.jinja of the original checkpoint there, and export it again.",
        )
    text = processor.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if text.count(processor.hf.image_token) + text.count(processor.hf.video_token) < len(fetched):
        raise hidden_media(messages) or _unwritten(len(fetched))
    inputs = _process(processor.hf, text, fetched)
    input_ids = _widen_windows(inputs["input_ids"][0].numpy(), fetched, processor.hf)
    return Prompt(text, input_ids, tuple(_split(inputs, fetched)), dict(inputs))


def _unwritten(media: int) -> InputError:
    return InputError(
        "the chat template does not write the conversation's pictures and clips",
        field="messages",
        expected=f"{media} placeholders",
        remedy="Check the checkpoint's chat template.",
    )


def _process(hf: Any, text: str, media: Sequence[FetchedMedia]) -> Any:
    arguments: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
    if images := [item.pixels for item in media if item.kind == "image"]:
        arguments["images"] = images
    if clips := [item for item in media if item.kind == "video"]:
        arguments["videos"] = [clip.pixels for clip in clips]
        arguments |= {"video_metadata": [clip.metadata for clip in clips], "do_sample_frames": False}
    try:
        # Media are resized to the grid already; a second resize would only change the pixels again.
        return hf(**arguments, do_resize=False)
    except ValueError as error:  # such as placeholders of pictures in the conversation's own text
        raise InputError(f"the processor refuses the conversation ({error})", field="messages") from None


def _widen_windows(input_ids: NDArray[np.int64], media: Sequence[FetchedMedia], hf: Any) -> NDArray[np.int64]:
    """The processor wrote one visual token per temporal patch of a window; here they become all of its tokens."""
    if all(item.window is None for item in media):
        return input_ids
    merge = hf.video_processor.merge_size
    repeats: list[int] = []
    for item in media:
        if item.kind == "video":
            grid = item.choice.grid
            tokens = grid.tokens(merge)
            repeats += [1] * tokens if item.window is None else [tokens // grid.t] * grid.t
    times = np.ones(len(input_ids), np.int64)
    times[input_ids == hf.video_token_id] = repeats
    return np.repeat(input_ids, times)


def _split(inputs: Any, fetched: Sequence[FetchedMedia]) -> list[PreparedMedia]:
    """Cut the processor's concatenated patches into one array per item, back in prompt order."""
    patches_by_kind = {}
    for kind, values, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if values in inputs:
            sizes = inputs[grids].prod(-1).tolist()
            patches_by_kind[kind] = iter(zip(inputs[values].split(sizes), inputs[grids].tolist(), strict=True))
    media = []
    for item in fetched:
        patches, grid = next(patches_by_kind[item.kind])
        if item.window is not None:
            empty = EncoderInput(item.choice.grid, patches[:0].numpy())
            media.append(PreparedMedia(item.kind, item.choice, empty, item.window, item.decoding))
            continue
        if grid != item.choice.grid.as_list():
            raise InputError(
                "the processor returned another grid", field="grid_thw", expected=str(item.choice.grid), got=grid
            )
        encoder_input = EncoderInput(item.choice.grid, patches.numpy())
        media.append(PreparedMedia(item.kind, item.choice, encoder_input, decoding=item.decoding))
    return media
