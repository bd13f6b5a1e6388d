"""A picture as a person sees it, upright and on white, in RGB: the one rule of device and server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.formats.picture_modes import as_seen, prepare_transparency
from qwen3vl_edge.contract.formats.picture_orientation import (
    UPRIGHT,
    is_turned_by_decoder,
    orientation_of,
    turned,
    turned_back,
)

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class SeenPicture:
    """A decoded picture.

    Attributes:
        image: RGB, without metadata that would turn or mask it once more.
        decoding: what makes it differ from the file's plain pixels, for the evidence: `draft`, `frame`, `orientation`
            and, of grey of more than 8 bits, `levels`.
    """

    image: Image
    decoding: dict[str, str]


def see_picture(
    image: Image, is_turned: bool = True, frames: int = 1, draft: int = 1, is_shared: bool = False
) -> SeenPicture:
    """Decode an opened picture.

    Args:
        is_turned: its orientation is applied.
        frames: of its file.
        draft: by how much a JPEG file is reduced as it is decoded.
        is_shared: others hold it too: it stays as it is.

    Raises:
        Exception: whatever its decoder raises.
    """
    if not is_shared:
        prepare_transparency(image)
    before = orientation_of(image)
    image.load()
    after = orientation_of(image)  # of PNG it may stand behind the pixels
    has_turned = is_turned_by_decoder(image) or (before != UPRIGHT and after == UPRIGHT)  # TIFF
    orientation = before if has_turned else after
    seen, levels = as_seen(image)
    if is_turned and not has_turned:
        seen = turned(seen, orientation)
    elif has_turned and not is_turned:
        seen = turned_back(seen, orientation)
    if seen is not image or not is_shared:
        # Without what another reader would apply once more. A copy, because an opened file remembers its EXIF.
        seen = seen.copy() if seen is image and orientation != UPRIGHT else seen
        seen.info = {}
    decoding = {
        "draft": f"1/{draft}" if draft > 1 else "",
        "frame": f"first of {frames}" if frames > 1 else "",
        "orientation": f"{orientation}{'' if is_turned else ', not applied'}" if orientation != UPRIGHT else "",
        "levels": "" if levels is None else str(levels),
    }
    return SeenPicture(seen, {name: value for name, value in decoding.items() if value})
