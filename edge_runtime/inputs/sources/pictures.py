"""A picture from a path, a URL, a data URI or PIL, opened once and checked before qwen-vl-utils gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.bounded_picture import (
    PictureBounds,
    decoded_size,
    decoder_faults,
    opened_picture,
)
from qwen3vl_edge.contract.formats.picture_files import client_formats
from qwen3vl_edge.contract.formats.picture_frames import frame_count
from qwen3vl_edge.contract.formats.picture_orientation import UPRIGHT, orientation_of, stored_size, turned_size
from qwen3vl_edge.contract.formats.seen_picture import SeenPicture, see_picture
from qwen3vl_edge.edge_runtime.inputs.messages import errors_at
from qwen3vl_edge.edge_runtime.inputs.sources.access import UNRESTRICTED, AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.read import read_source

# Pillow refuses pictures above twice this many pixels as decompression bombs.
MAX_IMAGE_PIXELS = 100_000_000
# What the operator's own files may be, beside what clients send.
FILE_FORMATS = (*client_formats(), "TIFF", "PPM", "JPEG2000", "ICO", "TGA", "DIB", "PCX")
LIMITS = MediaLimits()
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
            with decoder_faults(_bounds(self.label, self.formats)):
                return see_picture(self.content, self.is_turned, is_shared=True)
        with opened_picture(self.content, _bounds(self.label, self.formats)) as (image, file):
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
    bounds = _bounds(label, formats, limits)
    with opened_picture(content, bounds) as (image, file):
        size, draft = decoded_size(image, file, bounds)
        return Picture(content, label, formats, size, draft, orientation_of(image), limits.exif_orientation)


def _bounds(label: str, formats: tuple[str, ...], limits: MediaLimits = LIMITS) -> PictureBounds:
    return PictureBounds(
        label,
        "image",
        formats,
        lambda file_bytes: min(limits.most_pixels(file_bytes), MAX_IMAGE_PIXELS),
        "max_picture_pixels, or 10 a byte",
        may_be_reduced=True,
    )


def open_pictures(parts: Sequence[tuple[str, dict[str, Any]]], budget: MediaBudget) -> list[Picture]:
    """The pictures of a conversation's parts, their pixels added up before the first is decoded.

    Args:
        parts: each after its path, with `image`, or with `image_url` in either of OpenAI's forms.

    Raises:
        InputError, LimitError: as `open_picture`; or too many pixels together.
    """
    pictures = []
    for where, part in parts:
        budget.check()
        source = part.get("image", part.get("image_url"))
        with errors_at(where):
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
