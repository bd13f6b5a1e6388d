"""A picture from a path, a URL, a data URI or PIL, opened once and checked before qwen-vl-utils gets it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.sources.access import UNRESTRICTED, AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.read import read_source

# Pillow refuses pictures above twice this many pixels as decompression bombs.
MAX_IMAGE_PIXELS = 100_000_000


def open_image(source: Any, access: AccessPolicy = UNRESTRICTED, field: str = "image") -> Image.Image:
    """Open and fully decode a picture.

    Args:
        source: PIL image, path, `file://` or `http(s)://` URL, or `data:image/…;base64,` URI.
        access: what may be read.
        field: of the message that names the picture, for errors.

    Raises:
        InputError: not allowed, missing, unreachable, corrupt, not a picture, or too many pixels; names it.
        LimitError: too many bytes.
    """
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, Path)):
        raise InputError("not a picture", field=field, expected="path, URL, data URI or PIL image", got=type(source))
    picture = MediaSource("image", str(source), field)
    return decode_image(read_source(picture, access), picture.label)


def open_part(part: dict[str, Any]) -> Image.Image:
    """The picture of a message's part: its `image`, or `image_url` in either of OpenAI's forms.

    Raises:
        InputError, LimitError: as `open_image`.
    """
    source = part.get("image", part.get("image_url"))
    return open_image(source.get("url") if isinstance(source, dict) else source)


def decode_image(data: bytes | Path, label: str) -> Image.Image:
    """Open and fully decode a picture from its bytes or file; `label` names it in errors.

    Raises:
        InputError: missing, corrupt, not a picture, or too many pixels.
    """
    try:
        image = Image.open(BytesIO(data) if isinstance(data, bytes) else data)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise InputError(
                f"picture {label} is too large",
                field="image",
                expected=f"at most {MAX_IMAGE_PIXELS} pixels",
                got=f"{image.width}x{image.height}",
            )
        image.load()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such picture: {label}", field="image") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"picture {label} cannot be read ({error.strerror})", field="image") from None
    except UnidentifiedImageError:
        raise InputError(f"{label} is not a picture that Pillow can read", field="image") from None
    except Image.DecompressionBombError as error:
        limit = f"at most {MAX_IMAGE_PIXELS} pixels"
        raise InputError(f"picture {label} is too large", field="image", expected=limit, got=error) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"picture {label} is corrupt ({error})", field="image") from None
    return image
