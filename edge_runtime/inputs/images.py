"""A picture from a path, a URL, a data URI or PIL, opened once and checked before qwen-vl-utils sees it."""

from __future__ import annotations

import base64
import binascii
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from qwen3vl_edge.contract.errors import InputError

URL_TIMEOUT_SECONDS = 30.0
MAX_IMAGE_BYTES = 64 * 2**20
# Pillow refuses pictures above twice this many pixels as decompression bombs.
MAX_IMAGE_PIXELS = 100_000_000


def open_image(source: Any) -> Image.Image:
    """Open and fully decode a picture.

    Args:
        source: PIL image, path, `file://`, `http(s)://` URL, or `data:image/…;base64,` URI.

    Raises:
        InputError: missing, unreachable, too large, corrupt or not a picture; names it.
    """
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, Path)):
        raise InputError("not a picture", field="image", expected="path, URL, data URI or PIL image", got=type(source))
    text = str(source)
    label = text if len(text) <= 120 else text[:60] + "…"
    if text.startswith(("http://", "https://")):
        data: bytes | Path = _download(text, label)
    elif text.startswith("data:"):
        data = _data_uri(text, label)
    else:
        data = Path(text.removeprefix("file://"))
    return decode_image(data, label)


def decode_image(data: bytes | Path, label: str) -> Image.Image:
    """Open and fully decode a picture from its bytes or file; `label` names it in errors.

    Raises:
        InputError: as `open_image`.
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
    except FileNotFoundError:
        raise InputError(f"no such picture: {label}", field="image") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"picture {label} cannot be read ({error.strerror})", field="image") from None
    except UnidentifiedImageError:
        raise InputError(f"{label} is not a picture that Pillow knows", field="image") from None
    except Image.DecompressionBombError as error:
        limit = f"at most {MAX_IMAGE_PIXELS} pixels"
        raise InputError(f"picture {label} is too large", field="image", expected=limit, got=error) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"picture {label} is corrupt ({error})", field="image") from None
    return image


def _data_uri(uri: str, label: str) -> bytes:
    header, separator, payload = uri.partition("base64,")
    if not separator or not header.startswith("data:image"):
        raise InputError(f"data URI {label} is not a picture", field="image", expected="data:image/…;base64,…")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error:
        raise InputError(f"data URI {label} is not base64", field="image") from None


def _download(url: str, label: str) -> bytes:
    import httpx

    chunks, size = [], 0
    try:
        with httpx.stream("GET", url, timeout=URL_TIMEOUT_SECONDS, follow_redirects=True) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                size += len(chunk)
                if size > MAX_IMAGE_BYTES:
                    raise InputError(
                        f"picture {label} is too large", field="image", expected=f"at most {MAX_IMAGE_BYTES} bytes"
                    )
                chunks.append(chunk)
    except httpx.HTTPStatusError as error:
        raise InputError(f"picture {label} answered {error.response.status_code}", field="image") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"picture {label} cannot be fetched ({type(error).__name__})", field="image") from None
    return b"".join(chunks)
