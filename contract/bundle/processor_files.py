"""What transformers takes from a checkpoint's processor files, whichever of its generations wrote them.

Precedence as transformers 5.24 has it (`processing_utils.py`, `image_processing_base.py`, `video_processing_utils.py`):

- image processor: `image_processor` in processor_config.json, else preprocessor_config.json.
- video processor: `video_processor` in processor_config.json, else video_preprocessor_config.json, else
  preprocessor_config.json.
- chat template: `chat_template` in processor_config.json, else chat_template.json, else chat_template.jinja. A
  template in tokenizer_config.json alone is the tokenizer's, which transformers' processor does not use and vLLM does:
  it is used here too, on both sides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import CheckpointError

PROCESSOR_CONFIG = "processor_config.json"
IMAGE_CONFIG = "preprocessor_config.json"
VIDEO_CONFIG = "video_preprocessor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Defaults of `Qwen2VLImageProcessor` and `Qwen2VLVideoProcessor`, and of `Qwen3VLVideoProcessor` (transformers 5.24).
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Normalization:
    """How a processor turns bytes into pixel values: (byte · rescale_factor - mean) / std for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint.

    Raises:
        CheckpointError: the file is missing, or is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", field=str(path)) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})", field=str(path)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object", field=str(path))
    return value


def image_processor_config(folder: Path) -> dict[str, Any] | None:
    """The image processor's configuration as written, None where the folder has none.

    Raises:
        CheckpointError: a file is malformed.
    """
    return _processor_part(folder, "image_processor", (IMAGE_CONFIG,))


def video_processor_config(folder: Path) -> dict[str, Any] | None:
    """The video processor's configuration as written, None where the folder has none.

    Raises:
        CheckpointError: a file is malformed.
    """
    return _processor_part(folder, "video_processor", (VIDEO_CONFIG, IMAGE_CONFIG))


def image_normalization(folder: Path) -> Normalization | None:
    """What the image processor computes, None where there is none.

    Raises:
        CheckpointError: a file is malformed, or a value has the wrong type.
    """
    values = image_processor_config(folder)
    return None if values is None else _normalization(values, CLIP_MEAN, CLIP_STD)


def video_normalization(folder: Path) -> Normalization | None:
    """What the video processor computes, None where there is none.

    Raises:
        CheckpointError: a file is malformed, or a value has the wrong type.
    """
    values = video_processor_config(folder)
    if values is None:
        return None
    older = str(values.get("video_processor_type", "")).startswith("Qwen2VL")
    return _normalization(values, *((CLIP_MEAN, CLIP_STD) if older else (HALF, HALF)))


def chat_template(folder: Path) -> str | None:
    """The template that conversations are rendered with, None where the folder has none.

    Of several named templates, the one called "default".

    Raises:
        CheckpointError: a file is malformed.
    """
    if (template := _named(_optional(folder / PROCESSOR_CONFIG).get("chat_template"))) is not None:
        return template
    if (folder / "chat_template.json").is_file():
        return _named(read_json_object(folder / "chat_template.json").get("chat_template"))
    if (folder / "chat_template.jinja").is_file():
        try:
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{folder / 'chat_template.jinja'} cannot be read ({type(error).__name__})", field="chat_template.jinja"
            ) from None
    return _named(_optional(folder / TOKENIZER_CONFIG).get("chat_template"))


def _processor_part(folder: Path, key: str, files: tuple[str, ...]) -> dict[str, Any] | None:
    document = _optional(folder / PROCESSOR_CONFIG)
    if key in document:
        if not isinstance(document[key], dict):
            raise CheckpointError(f"{folder / PROCESSOR_CONFIG} has no object in {key}", field=PROCESSOR_CONFIG)
        part: dict[str, Any] = document[key]
        return part
    return next((read_json_object(folder / name) for name in files if (folder / name).is_file()), None)


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _named(template: Any) -> str | None:
    """The default of named templates: an object, or tokenizer_config.json's list of `{"name", "template"}`."""
    if isinstance(template, list):
        template = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _normalization(
    values: dict[str, Any], default_mean: tuple[float, ...], default_std: tuple[float, ...]
) -> Normalization:
    mean, std = _channels(values, "image_mean", default_mean), _channels(values, "image_std", default_std)
    if values.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = values.get("rescale_factor")
    if not (factor is None or _is_number(factor)):
        raise _wrong("rescale_factor", "a number", factor)
    if values.get("do_rescale") is False:
        factor = 1.0
    return Normalization(mean, std, 1 / 255 if factor is None else float(factor))


def _channels(values: dict[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """One number a channel; a single number is for all three."""
    value = values.get(name)
    if value is None:
        return default
    if _is_number(value):
        return (float(value),) * 3
    if not isinstance(value, list) or not all(_is_number(item) for item in value) or not value:
        raise _wrong(name, "a list of numbers", value)
    return tuple(float(item) for item in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _wrong(name: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        f"the processor's {name} has the wrong type", field=name, expected=expected, got=repr(got)[:60]
    )
