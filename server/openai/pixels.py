"""Raw pictures: rejected, because the device encodes them, unless the server runs with `--allow-pixels`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.bounded_picture import (
    FREE_PIXELS,
    PIXELS_PER_BYTE,
    PictureBounds,
    decoded_size,
    most_pixels,
    opened_picture,
)
from qwen3vl_edge.contract.formats.data_uri import parse_data_uri
from qwen3vl_edge.contract.formats.picture_files import client_formats
from qwen3vl_edge.contract.formats.picture_frames import frame_count
from qwen3vl_edge.contract.formats.seen_picture import SeenPicture, see_picture
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.server.openai.tensor_formats import decode_base64

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE_BYTES = 64 * 2**20
CheckGrid = Callable[[Grid], None]


class PixelEncoder(Protocol):
    """Encodes pictures exactly as the unsplit model does.

    Attributes:
        policy: between which limits they are resized.
    """

    policy: PixelPolicy

    def encode(
        self, open_image: Callable[[], Image], check: CheckGrid, policy: PixelPolicy, given: Mapping[str, Any]
    ) -> MediaEmbeddings:
        """Embeddings of a picture, in the model's dtype or wider. Blocks; thread-safe.

        Args:
            open_image: decodes it into RGB; called by one thread at a time, so that peak memory is bounded.
            check: called with the grid before encoding; raises if the grid is too large.
            policy: of the request.
            given: limits that the picture's part has beside its URL.

        Raises:
            InputError: the picture cannot be resized to the model's input, such as one of very unequal sides.
        """
        ...


def refuse_pixels(kind: str, where: str, allowed: bool = False) -> InputError:
    """The error for a part with pixels.

    Args:
        allowed: whether the server encodes pictures; it never encodes clips.
    """
    if allowed:
        return InputError(
            "clips are encoded on the device, not here",
            field=where,
            expected="image_url, image_embeds or video_embeds",
            got=kind,
            remedy="Send the clip to the edge daemon (qwen3vl-edge edge).",
        )
    remedy = "Send this request to the edge daemon (qwen3vl-edge edge), which encodes it there"
    remedy += ", or start the server with --allow-pixels." if kind == "image_url" else "."
    return InputError(
        "pixels are encoded on the device: this server holds no vision encoder",
        field=where,
        expected="image_embeds or video_embeds",
        got=kind,
        remedy=remedy,
    )


def open_data_uri(uri: str, where: str, claim: Callable[[int], None], exif_orientation: bool = True) -> SeenPicture:
    """Decode the picture of a `data:` URI into RGB as a person sees it, as the device does.

    Args:
        claim: called with its number of pixels before it is decoded; may raise.
        exif_orientation: it is turned as its EXIF says.

    Raises:
        InputError: another kind of URL, or not a picture.
        LimitError: too many bytes or pixels; raised before decoding.
    """
    parsed = parse_data_uri(uri)
    if parsed is None or parsed.kind != "image":
        raise InputError(
            "this server reads no files and fetches no URLs",
            field=where,
            expected="data:image/…;base64,…",
            got=ascii(uri.partition(":")[0][:20]),  # no more: it may contain a password
            remedy="Send the picture in the request.",
        )
    data = decode_base64(parsed.payload, where, MAX_FILE_BYTES)
    limit = f"{FREE_PIXELS}, or {PIXELS_PER_BYTE} a byte"
    bounds = PictureBounds(where, where, client_formats(), most_pixels, limit)
    with opened_picture(data, bounds) as (image, file):
        (width, height), _ = decoded_size(image, file, bounds)
        claim(width * height)
        file.header_is_read()
        return see_picture(image, exif_orientation, frame_count(image, data))
