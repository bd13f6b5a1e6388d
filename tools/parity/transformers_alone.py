"""Parity's third side: transformers alone, from the original files to tokens, with its own loading and resizing.

The other two sides share this project's preprocessing, so a picture that it got wrong would be wrong on both. Here
`apply_chat_template` loads every picture and clip itself, by the checkpoint's own limits. Where its input differs from
the unsplit model's by a choice, the choice is named; where no choice explains it, that is a fault.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.processor_files import chat_template
from qwen3vl_edge.edge_runtime.inputs.messages import Message
from qwen3vl_edge.edge_runtime.inputs.sources.read import file_path

MEDIA_KEYS = ("type", "text", "image", "image_url", "video")
# Modes of Pillow whose conversion to RGB differs: transformers clips deep greys and puts transparency on black.
OPAQUE = ("1", "L", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "P", "RGBX")
PIXEL_LIMITS = "pixel limits"
RESAMPLING = "resampling"
PIXEL_FORMAT = "pixel format"
OPTIONS = "options of the message"
CLIP_SAMPLING = "clip sampling"


@dataclass(frozen=True)
class Alone:
    """What transformers alone makes of a prompt.

    Attributes:
        choices: why its input is not the unsplit model's; empty where it is the same to the bit.
        fault: a difference that no choice explains.
        unread: why transformers did not take the prompt at all.
        ids: of its answer, where its input differs by choice alone; else None.
    """

    choices: tuple[str, ...] = ()
    fault: str | None = None
    unread: str | None = None
    ids: tuple[int, ...] | None = None


class AloneProcessor:
    """The checkpoint's processor as transformers loads it, with nothing changed."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoProcessor

        self._hf: Any = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
        if self._hf.chat_template is None:  # transformers' processor does not look at the tokenizer's
            self._hf.chat_template = chat_template(checkpoint)
        if importlib.util.find_spec("torchcodec") is None:  # transformers' default reader of clips; it has others
            self._hf.video_processor.fetch_videos = _fetch_with_pyav

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side."""
        return int(self._hf.image_processor.patch_size)

    def inputs(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The model's input for a conversation of `_as_transformers_reads`.

        Raises:
            Exception: of any kind that transformers raises for what it cannot read.
        """
        made = self._hf.apply_chat_template(
            list(messages),
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(made)

    def pixel_values(self, pictures: Sequence[Any], grids: list[list[int]], resizes_bytes: bool) -> NDArray[np.float32]:
        """Patches of pictures resized to given grids.

        Args:
            resizes_bytes: by torchvision, as the processor does; else with Pillow's bicubic filter, as qwen-vl-utils'
                `fetch_image`.
        """
        from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize

        patch = self.patch_size
        resized = []
        for picture, (_, rows, columns) in zip(pictures, grids, strict=True):
            sides = [rows * patch, columns * patch]
            if resizes_bytes:
                resized.append(resize(pil_to_tensor(picture), sides, InterpolationMode.BICUBIC, antialias=True))
            else:
                resized.append(picture.resize((sides[1], sides[0])))
        values: NDArray[np.float32] = self._hf.image_processor(resized, do_resize=False, return_tensors="pt")[
            "pixel_values"
        ].numpy()
        return values


def compare_alone(
    processor: AloneProcessor,
    messages: Sequence[Message],
    unsplit: dict[str, Any],
    answer: Callable[[dict[str, Any]], tuple[int, ...]],
    *,
    resizes_bytes: bool,
) -> Alone:
    """Compare the inputs, and ask where they differ by choice.

    Args:
        unsplit: the unsplit model's input for the same messages.
        answer: the unsplit model's answer to an input.
        resizes_bytes: of the bundle's pixel policy, `PixelPolicy.resizes_bytes`; then resizing differs by no choice.
    """
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    sources = [source for part in parts if (source := _picture(part)) is not None]
    has_clips = any("video" in part for part in parts)
    try:
        read = [_as_transformers_reads(message) for message in messages]
        pictures = [
            part["image"]
            for message in read
            if isinstance(message["content"], list)
            for part in message["content"]
            if "image" in part
        ]
        alone = processor.inputs(read)
        comparable = [_mode(source) in OPAQUE for source in sources]
        fault = _fault(processor, pictures, comparable, unsplit, resizes_bytes)
    except Exception as error:  # transformers raises many kinds
        return Alone(unread=(str(error) or repr(error)).splitlines()[0][:160])
    if _same(alone, unsplit):
        return Alone(fault=fault)
    choices = []
    if any(set(part) - set(MEDIA_KEYS) for part in parts):
        choices.append(OPTIONS)
    if pictures and not _equal(alone.get("image_grid_thw"), unsplit.get("image_grid_thw")):
        if not resizes_bytes:
            choices.append(PIXEL_LIMITS)
        elif not choices:
            fault = "a picture has another size than the checkpoint's processor gives it"
    elif pictures and not _equal(alone.get("pixel_values"), unsplit.get("pixel_values")):
        choices += [RESAMPLING] if not resizes_bytes and _is_resized(pictures, unsplit, processor) else []
    if any(_mode(source) not in OPAQUE for source in sources):
        choices.append(PIXEL_FORMAT)
    if has_clips:
        choices.append(CLIP_SAMPLING)
    if not choices and fault is None:
        fault = "the input differs, and no picture was resized"
    return Alone(tuple(choices), fault, ids=answer(alone) if choices and fault is None else None)


def _fetch_with_pyav(source: Any, sample_indices_fn: Any = None) -> Any:
    from transformers.video_utils import load_video

    if isinstance(source, list):
        return list(zip(*[_fetch_with_pyav(one, sample_indices_fn) for one in source], strict=True))
    return load_video(source, backend="pyav", sample_indices_fn=sample_indices_fn)


def _as_transformers_reads(message: Message) -> Message:
    if not isinstance(message["content"], list):
        return message
    return {**message, "content": [_part(part) for part in message["content"]]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    from transformers.image_utils import load_image

    picture = _picture(part)
    if picture is not None:  # transformers' other reader, torchvision, is deprecated there
        return {"type": "image", "image": load_image(picture)}
    return {"type": "video", "video": part["video"]} if "video" in part else {"type": "text", "text": part["text"]}


def _picture(part: dict[str, Any]) -> Any:
    if "video" in part:
        return None
    source = part.get("image", part.get("image_url"))
    source = source.get("url") if isinstance(source, dict) else source
    return str(file_path(source)) if isinstance(source, str) and source[:5].lower() == "file:" else source


def _mode(picture: Any) -> str:
    """Pillow's mode; "transparent" where a palette or a key makes pixels transparent."""
    from PIL import Image

    if not isinstance(picture, Image.Image):
        if not Path(str(picture)).is_file():
            return "RGB"  # by URL: what differs then is told as a fault
        with Image.open(picture) as opened:
            return "transparent" if "transparency" in opened.info else opened.mode
    return "transparent" if "transparency" in picture.info else picture.mode


def _fault(
    processor: AloneProcessor, pictures: list[Any], comparable: list[bool], unsplit: dict[str, Any], resizes_bytes: bool
) -> str | None:
    """Whether the pictures, as transformers loads them, are those of the unsplit model's input, at its grids.

    Args:
        comparable: False for a picture of a pixel format that differs by choice; it excuses itself alone.
    """
    if not pictures:
        return None
    grids = unsplit["image_grid_thw"].tolist()
    expected = processor.pixel_values(pictures, grids, resizes_bytes)
    actual = unsplit["pixel_values"].numpy()
    ends = np.cumsum([frames * rows * columns for frames, rows, columns in grids])
    for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if comparable[index] and not np.array_equal(expected[start:end], actual[start:end]):
            most = float(np.abs(expected[start:end] - actual[start:end]).max())
            return f"picture {index + 1} is not as transformers loads it: patches differ by up to {most:.3g}"
    return None


def _is_resized(pictures: list[Any], unsplit: dict[str, Any], processor: AloneProcessor) -> bool:
    patch = processor.patch_size
    return any(
        picture.size != (columns * patch, rows * patch)
        for picture, (_, rows, columns) in zip(pictures, unsplit["image_grid_thw"].tolist(), strict=True)
    )


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = ("input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    return all(_equal(one.get(name), other.get(name)) for name in names)


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one is other if one is None or other is None else bool(torch.equal(one, other))
