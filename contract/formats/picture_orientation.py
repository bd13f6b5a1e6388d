"""How a picture is to be turned before anyone sees it: EXIF's orientation, wherever a format keeps it.

transformers' `load_image`, vLLM and every viewer turn it (`PIL.ImageOps.exif_transpose`), qwen-vl-utils does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

UPRIGHT = 1
# Of an opened HEIC file: the orientation that its decoder applies, put there by `opened_picture`.
CONTAINER_ORIENTATION = "container_orientation"
_TAG = 0x0112  # of EXIF and TIFF
_TIFF_WIDTH, _TIFF_LENGTH = 256, 257
_TURNED_BACK = {6: 8, 8: 6}  # the others undo themselves
_METHODS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def orientation_of(image: Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that can be read.

    Of a PNG file that is not decoded yet, whose EXIF may follow its pixels, what stands before them: Pillow would
    decode them to look further. Of a HEIC file its container's, as `opened_picture` found it.
    """
    if CONTAINER_ORIENTATION in image.info:
        return int(image.info[CONTAINER_ORIENTATION])
    is_encoded = bool(getattr(image, "tile", None))
    if image.format == "PNG" and is_encoded and not {"exif", "Raw profile type exif"} & set(image.info):
        return UPRIGHT
    try:
        found = image.getexif().get(_TAG, UPRIGHT)
        return int(found) if found in _METHODS else UPRIGHT
    except Exception:  # of damaged metadata: struct.error, SyntaxError, KeyError and others; viewers ignore it
        return UPRIGHT


def turned(image: Image, orientation: int) -> Image:
    """The picture as its orientation says; itself where that is 1."""
    from PIL.Image import Transpose

    return image if orientation == UPRIGHT else image.transpose(Transpose[_METHODS[orientation]])


def turned_back(image: Image, orientation: int) -> Image:
    """The inverse of `turned`."""
    return turned(image, _TURNED_BACK.get(orientation, orientation))


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of a turned picture."""
    return size[::-1] if orientation >= 5 else size


def is_turned_by_decoder(image: Image) -> bool:
    """Whether Pillow has turned, or will turn, an opened picture itself."""
    return CONTAINER_ORIENTATION in image.info


def stored_size(image: Any) -> tuple[int, int]:
    """Width and height of the rows in the file: of TIFF and HEIC files Pillow tells those after it has turned them."""
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags and _TIFF_WIDTH in tags and _TIFF_LENGTH in tags:
        return int(tags[_TIFF_WIDTH]), int(tags[_TIFF_LENGTH])
    size = (int(image.size[0]), int(image.size[1]))
    return turned_size(size, orientation_of(image)) if is_turned_by_decoder(image) else size
