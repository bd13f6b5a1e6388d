"""A picture from a path, a URL, a data URI or PIL, opened once and checked before qwen-vl-utils gets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from qwen3vl_edge.contract.errors import ContractError, InputError, LimitError
from qwen3vl_edge.contract.formats.coded_size import is_worth_decoding
from qwen3vl_edge.contract.formats.picture_files import (
    CODED_FORMATS,
    JPEG_FORMATS,
    MAX_JPEG_SIDE,
    client_formats,
    fault_of,
)
from qwen3vl_edge.contract.formats.picture_frames import frame_count
from qwen3vl_edge.contract.formats.picture_orientation import UPRIGHT, orientation_of, stored_size, turned_size
from qwen3vl_edge.contract.formats.seen_picture import SeenPicture, see_picture
from qwen3vl_edge.edge_runtime.inputs.sources.access import UNRESTRICTED, AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.decoding import BoundedFile
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.read import read_source

# Pillow refuses pictures above twice this many pixels as decompression bombs.
MAX_IMAGE_PIXELS = 100_000_000
# What the operator's own files may be, beside what clients send.
FILE_FORMATS = (*client_formats(), "TIFF", "PPM", "JPEG2000", "ICO", "TGA", "DIB", "PCX")
_DRAFTS = (1, 2, 4, 8)  # the scales at which libjpeg decodes at once
LIMITS = MediaLimits()
_CONVERT = "Convert it to PNG."
_OPENED_BY_CALLER = "(a PIL image)"


@dataclass(frozen=True)
class Picture:
    """A picture that is checked and not decoded yet: until then it costs its file's bytes.

    Attributes:
        content: the file or its path; or a picture that the caller has opened.
        formats: of Pillow, that the file may have.
        rows_size: width and height of its rows as they are decoded, before it is turned.
        draft: 1, or by how much a JPEG file is reduced as it is decoded, because it has too many pixels for its bytes.
        orientation: EXIF's, as far as it stands before the pixels.
        is_turned: whether its orientation is applied.
    """

    content: bytes | Path | Image.Image
    label: str
    formats: tuple[str, ...]
    rows_size: tuple[int, int]
    draft: int = 1
    orientation: int = UPRIGHT
    is_turned: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that it will have."""
        return turned_size(self.rows_size, self.orientation) if self.is_turned else self.rows_size

    @property
    def pixels(self) -> int:
        return self.rows_size[0] * self.rows_size[1]

    def decode(self) -> Image.Image:
        """The picture in RGB; a JPEG's pixels differ from the reference's where `draft` is not 1.

        Raises:
            InputError, LimitError: corrupt.
        """
        return self.see().image

    def see(self) -> SeenPicture:
        """The picture in RGB, and what was done to it.

        Raises:
            InputError, LimitError: corrupt.
        """
        if isinstance(self.content, Image.Image):
            with _faults(self.label, self.formats):
                return see_picture(self.content, self.is_turned, is_shared=True)
        with _opened(self.content, self.label, self.formats) as (image, file):
            if self.draft > 1:
                image.draft(image.mode, (image.width // self.draft, image.height // self.draft))
            if stored_size(image) != self.rows_size:
                raise InputError(f"picture {self.label} was changed while it was read", field="image")
            file.header_is_read()
            return see_picture(image, self.is_turned, frame_count(image, self.content), self.draft)


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
        # Pillow tells, and makes, a TIFF file's turned size.
        orientation = UPRIGHT if source.format == "TIFF" else orientation_of(source)
        return Picture(source, _OPENED_BY_CALLER, (), source.size, 1, orientation, limits.exif_orientation)
    if not isinstance(source, (str, Path)):
        raise InputError("not a picture", field=field, expected="path, URL, data URI or PIL image", got=type(source))
    named = MediaSource("image", str(source), field)
    content = read_source(named, access)
    is_trusted = access.folders is None or isinstance(content, Path)
    return measure_picture(content, named.label, FILE_FORMATS if is_trusted else client_formats(), limits)


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
        jpeg = image.format in JPEG_FORMATS
        if jpeg:
            file.check_scans()
            if max(image.size) > MAX_JPEG_SIDE:
                raise _too_large(label, f"at most {MAX_JPEG_SIDE} pixels a side, which JPEG decoders read", image.size)
        elif image.format in CODED_FORMATS and not is_worth_decoding(
            content if isinstance(content, bytes) else file.whole(), most
        ):
            raise _too_large(label, f"frames of about {most} pixels", "larger ones")
        # Of a progressive file libjpeg keeps the coefficients of all pixels, whatever the scale.
        drafts = _DRAFTS if jpeg and not image.info.get("progressive") else (1,)
        width, height = stored_size(image)
        for draft in drafts:
            size = (-(-width // draft), -(-height // draft))
            # Pillow asks libjpeg for a size, and of a side shorter than the scale it gets another.
            if size[0] * size[1] <= most and min(width, height) >= draft:
                orientation = orientation_of(image)
                return Picture(content, label, formats, size, draft, orientation, limits.exif_orientation)
        limit = f"at most {most} pixels in a file of {file.bytes} bytes (max_picture_pixels, or 10 a byte)"
        raise _too_large(label, limit, (width, height))


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


def _too_large(label: str, limit: str, got: tuple[int, int] | str) -> LimitError:
    return LimitError(
        f"picture {label} is too large",
        field="image",
        expected=limit,
        got=got if isinstance(got, str) else f"{got[0]}x{got[1]}",
        remedy="Make it smaller, or save it as a baseline JPEG file, which is decoded at a reduced size.",
    )


@contextmanager
def _opened(
    content: bytes | Path | Image.Image, label: str, formats: tuple[str, ...]
) -> Iterator[tuple[Any, BoundedFile]]:
    """A file and its header; errors as of `_faults`."""
    assert not isinstance(content, Image.Image)
    with _faults(label, formats), BoundedFile(content, label) as file:
        yield Image.open(file, formats=formats), file


@contextmanager
def _faults(label: str, formats: tuple[str, ...]) -> Iterator[None]:
    """Whatever Pillow raises within the block becomes an error that names the picture."""
    try:
        yield
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
    except Exception as error:
        raise InputError(f"picture {label} is corrupt ({fault_of(error)})", field="image") from None
