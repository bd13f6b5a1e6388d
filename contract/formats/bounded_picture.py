"""A picture's file, opened and held against its bounds before it is decoded: one check for device and server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import ContractError, InputError, LimitError
from qwen3vl_edge.contract.formats.bounded_file import BoundedFile
from qwen3vl_edge.contract.formats.coded_size import is_worth_decoding
from qwen3vl_edge.contract.formats.heif_boxes import container_orientation
from qwen3vl_edge.contract.formats.picture_files import CODED_FORMATS, HEIF, JPEG_FORMATS, MAX_JPEG_SIDE, fault_of
from qwen3vl_edge.contract.formats.picture_orientation import CONTAINER_ORIENTATION, stored_size

FREE_PIXELS = 8_388_608  # 4K, and 3840 x 2160; with its copy in RGB at most 59 MB
PIXELS_PER_BYTE = 10  # beyond them; photographs have 2 to 8 pixels a byte
_DRAFTS = (1, 2, 4, 8)  # the scales at which libjpeg decodes at once


def most_pixels(file_bytes: int) -> int:
    """The most pixels of a picture whose file has so many bytes: a small file must not become a large one in memory."""
    return max(FREE_PIXELS, PIXELS_PER_BYTE * file_bytes)


@dataclass(frozen=True)
class PictureBounds:
    """What a picture may be, and how errors name it.

    Attributes:
        label: names it in errors.
        field: of the request, at fault.
        formats: of Pillow, that its file may have.
        most_pixels: of a file of so many bytes.
        limit: where that comes from, for errors.
        may_be_reduced: a JPEG file with more pixels is decoded at a smaller scale.
    """

    label: str
    field: str
    formats: tuple[str, ...]
    most_pixels: Callable[[int], int]
    limit: str
    may_be_reduced: bool = False


@contextmanager
def opened_picture(content: bytes | Path, bounds: PictureBounds) -> Iterator[tuple[Any, BoundedFile]]:
    """Pillow's picture, whose header is read, and its file; whatever is raised within the block names the picture.

    Raises:
        InputError: missing, corrupt, or not a picture.
        LimitError: its structure is in too many pieces.
    """
    from PIL import Image

    with decoder_faults(bounds), BoundedFile(content, bounds.label, bounds.field) as file:
        try:
            image = Image.open(file, formats=bounds.formats)
        except Image.DecompressionBombError:
            raise _too_large(bounds, _limit(file, bounds), "more than Pillow decodes") from None
        if image.format == HEIF:
            image.info[CONTAINER_ORIENTATION] = container_orientation(file.whole())
        yield image, file


def decoded_size(image: Any, file: BoundedFile, bounds: PictureBounds) -> tuple[tuple[int, int], int]:
    """Width and height of an opened picture's rows once they are decoded, and by how much they are reduced.

    Raises:
        LimitError: too many pixels for its file, or scans, or a side too long.
    """
    most = bounds.most_pixels(file.bytes)
    is_jpeg = image.format in JPEG_FORMATS
    if is_jpeg:
        file.check_scans()
        if max(image.size) > MAX_JPEG_SIDE:
            raise _too_large(bounds, f"at most {MAX_JPEG_SIDE} pixels a side, which JPEG decoders read", image.size)
    elif image.format in CODED_FORMATS and not is_worth_decoding(file.whole(), most):
        raise _too_large(bounds, f"frames of about {most} pixels", "larger ones")
    # Of a progressive file libjpeg keeps the coefficients of all pixels, whatever the scale.
    is_reduced = bounds.may_be_reduced and is_jpeg and not image.info.get("progressive")
    width, height = stored_size(image)
    for draft in _DRAFTS if is_reduced else _DRAFTS[:1]:
        size = (-(-width // draft), -(-height // draft))
        # Pillow asks libjpeg for a size, and of a side shorter than the scale it gets another.
        if size[0] * size[1] <= most and min(width, height) >= draft:
            return size, draft
    raise _too_large(bounds, _limit(file, bounds), (width, height))


@contextmanager
def decoder_faults(bounds: PictureBounds) -> Iterator[None]:
    """Whatever Pillow raises within the block becomes an error that names the picture."""
    from PIL import UnidentifiedImageError

    label, field = bounds.label, bounds.field
    try:
        yield
    except ContractError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such picture: {label}", field=field) from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"picture {label} cannot be read ({error.strerror})", field=field) from None
    except UnidentifiedImageError:
        expected, remedy = ", ".join(bounds.formats), "Convert it to PNG."
        raise InputError(f"{label} is not a picture", field=field, expected=expected, remedy=remedy) from None
    except Exception as error:
        raise InputError(f"picture {label} is corrupt ({fault_of(error)})", field=field) from None


def _limit(file: BoundedFile, bounds: PictureBounds) -> str:
    return f"at most {bounds.most_pixels(file.bytes)} pixels in a file of {file.bytes} bytes ({bounds.limit})"


def _too_large(bounds: PictureBounds, limit: str, got: tuple[int, int] | str) -> LimitError:
    reduced = ", or save it as a baseline JPEG file, which is decoded at a reduced size"
    return LimitError(
        f"picture {bounds.label} is too large",
        field=bounds.field,
        expected=limit,
        got=got if isinstance(got, str) else f"{got[0]}x{got[1]}",
        remedy=f"Make it smaller{reduced if bounds.may_be_reduced else ''}.",
    )
