"""A picture from a path, a URL, a data URI or PIL, opened once and checked before qwen-vl-utils gets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from qwen3vl_edge.contract.errors import ContractError, InputError, LimitError
from qwen3vl_edge.edge_runtime.inputs.sources.access import UNRESTRICTED, AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.decoding import BoundedFile
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.read import read_source

# Pillow refuses pictures above twice this many pixels as decompression bombs.
MAX_IMAGE_PIXELS = 100_000_000
# What clients send; and what the operator's own files may be. Pillow reads some forty more, of which some run a program
# (EPS is given to Ghostscript) or decode to another size than they say.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FILE_FORMATS = (*FORMATS, "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "DIB", "PCX")
_DRAFTS = (1, 2, 4, 8)  # the scales at which libjpeg decodes at once
LIMITS = MediaLimits()
_CONVERT = "Convert it to PNG."


@dataclass(frozen=True)
class Picture:
    """A picture that is checked and not decoded yet: until then it costs its file's bytes.

    Attributes:
        content: the file or its path; or a picture that the caller has opened.
        formats: of Pillow, that the file may have.
        size: width and height that it will have.
        draft: 1, or by how much a JPEG file is reduced as it is decoded, because it has too many pixels for its bytes.
    """

    content: bytes | Path | Image.Image
    label: str
    formats: tuple[str, ...]
    size: tuple[int, int]
    draft: int

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def decode(self) -> Image.Image:
        """The picture; a JPEG's pixels differ from the reference's where `draft` is not 1.

        Raises:
            InputError, LimitError: corrupt.
        """
        if isinstance(self.content, Image.Image):
            return self.content
        with _opened(self.content, self.label, self.formats) as (image, file):
            if self.draft > 1:
                image.draft(image.mode, (image.width // self.draft, image.height // self.draft))
            if image.size != self.size:
                raise InputError(f"picture {self.label} was changed while it was read", field="image")
            file.header_is_read()
            image.load()
            return image


def open_picture(
    source: Any, access: AccessPolicy = UNRESTRICTED, field: str = "image", limits: MediaLimits = LIMITS
) -> Picture:
    """Open a picture without decoding it.

    Args:
        source: PIL image, path, `file://` or `http(s)://` URL, or `data:image/…;base64,` URI; or a picture opened
            before.
        access: what may be read.
        field: of the message that names the picture, for errors.
        limits: how many pixels it may have.

    Raises:
        InputError: not allowed, missing, unreachable, corrupt or not a picture; names it.
        LimitError: too many bytes or pixels.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return Picture(source, "", (), source.size, 1)
    if not isinstance(source, (str, Path)):
        raise InputError("not a picture", field=field, expected="path, URL, data URI or PIL image", got=type(source))
    named = MediaSource("image", str(source), field)
    content = read_source(named, access)
    is_trusted = access.folders is None or isinstance(content, Path)
    return measure_picture(content, named.label, FILE_FORMATS if is_trusted else FORMATS, limits)


def measure_picture(
    content: bytes | Path, label: str, formats: tuple[str, ...] = FILE_FORMATS, limits: MediaLimits = LIMITS
) -> Picture:
    """A picture from its file's header.

    Args:
        label: names it in errors.
        formats: of Pillow, that it may have.

    Raises:
        InputError: missing, corrupt, or not a picture.
        LimitError: too many pixels for its file.
    """
    with _opened(content, label, formats) as (image, file):
        most = min(limits.most_pixels(file.bytes), MAX_IMAGE_PIXELS)
        jpeg = image.format in ("JPEG", "MPO")
        if jpeg:
            file.check_scans()
        # Of a progressive file libjpeg keeps the coefficients of all pixels, whatever the scale.
        drafts = _DRAFTS if jpeg and not image.info.get("progressive") else (1,)
        for draft in drafts:
            size = (-(-image.width // draft), -(-image.height // draft))
            if size[0] * size[1] <= most:
                return Picture(content, label, formats, size, draft)
        raise LimitError(
            f"picture {label} is too large",
            field="image",
            expected=f"at most {most} pixels in a file of {file.bytes} bytes (max_picture_pixels, or 10 a byte)",
            got=f"{image.width}x{image.height}",
            remedy="Make it smaller, or save it as a baseline JPEG file, which is decoded at a reduced size.",
        )


def open_pictures(parts: list[dict[str, Any]], budget: MediaBudget) -> list[Picture]:
    """The pictures of a conversation's parts, their pixels added up before the first is decoded.

    Args:
        parts: each with `image`, or with `image_url` in either of OpenAI's forms.

    Raises:
        InputError, LimitError: as `open_picture`; or too many pixels together.
    """
    pictures = []
    for part in parts:
        budget.check()
        source = part.get("image", part.get("image_url"))
        picture = open_picture(source.get("url") if isinstance(source, dict) else source, limits=budget.limits)
        budget.add_pixels(picture.pixels)
        pictures.append(picture)
    return pictures


def open_image(source: Any, access: AccessPolicy = UNRESTRICTED, field: str = "image") -> Image.Image:
    """Open and fully decode a picture.

    Args:
        source, access, field: as `open_picture`.

    Raises:
        InputError, LimitError: as `open_picture`.
    """
    return open_picture(source, access, field).decode()


def decode_image(data: bytes | Path, label: str) -> Image.Image:
    """Open and fully decode a picture from its bytes or file; `label` names it in errors.

    Raises:
        InputError, LimitError: as `measure_picture`.
    """
    return measure_picture(data, label).decode()


@contextmanager
def _opened(
    content: bytes | Path | Image.Image, label: str, formats: tuple[str, ...]
) -> Iterator[tuple[Any, BoundedFile]]:
    """A file and its header; whatever Pillow raises within the block becomes an error that names the picture."""
    assert not isinstance(content, Image.Image)
    try:
        with BoundedFile(content, label) as file:
            yield Image.open(file, formats=formats), file
    except ContractError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such picture: {label}", field="image") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"picture {label} cannot be read ({error.strerror})", field="image") from None
    except UnidentifiedImageError:
        expected = ", ".join(formats)
        raise InputError(f"{label} is not a picture", field="image", expected=expected, remedy=_CONVERT) from None
    except Image.DecompressionBombError as error:
        limit = f"at most {MAX_IMAGE_PIXELS} pixels"
        raise LimitError(f"picture {label} is too large", field="image", expected=limit, got=error) from None
    except (OSError, SyntaxError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"picture {label} is corrupt ({error})", field="image") from None
