"""How large the frames in a HEIC or AVIF file are, from their own headers, as real encoders write them."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from qwen3vl_edge.contract.formats.coded_size import is_worth_decoding
from qwen3vl_edge.contract.formats.heif_boxes import coded_items, container_orientation

_PARAMETER_SETS = (32, 33, 34)


def hevc_units(width: int, height: int, pixel_format: str) -> list[bytes]:
    """NAL units of one frame, by x265."""
    context = av.CodecContext.create("libx265", "w")
    context.width, context.height, context.pix_fmt = width, height, pixel_format
    context.time_base = Fraction(1, 25)
    context.options = {"x265-params": "log-level=none:keyint=1:repeat-headers=1", "preset": "ultrafast"}
    frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "rgb24")
    frame.pts = 0
    packets = [*context.encode(frame.reformat(format=pixel_format)), *context.encode(None)]
    stream = b"".join(bytes(packet) for packet in packets)
    return [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1") if unit.rstrip(b"\0")]


def box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), kind) + joined


def heic(units: list[bytes], in_band: bool = False, items: int = 1) -> bytes:
    """A file of items with the same coded picture; their parameter sets in `hvcC`, or among the data."""
    sets = [unit for unit in units if unit[0] >> 1 & 63 in _PARAMETER_SETS]
    configured = [] if in_band else sets
    arrays = b"".join(struct.pack(">BHH", unit[0] >> 1 & 63, 1, len(unit)) + unit for unit in configured)
    configuration = box(b"hvcC", bytes(21), b"\3", bytes([len(configured)]), arrays)
    data = b"".join(
        struct.pack(">I", len(unit)) + unit for unit in units if in_band or unit[0] >> 1 & 63 not in _PARAMETER_SETS
    )
    entries = [box(b"infe", struct.pack(">BxxxHH4s", 2, item + 1, 0, b"hvc1"), b"\0") for item in range(items)]
    extents = b"".join(struct.pack(">HHHHII", item + 1, 1, 0, 1, 0, len(data)) for item in range(items))
    meta = box(
        b"meta",
        bytes(4),
        box(b"iinf", bytes(4), struct.pack(">H", items), *entries),
        box(b"iloc", bytes([1, 0, 0, 0, 0x44, 0]), struct.pack(">H", items), extents),
        box(b"iprp", box(b"ipco", configuration)),
        box(b"idat", data),
    )
    return box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta


@pytest.mark.parametrize("in_band", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("size", [(64, 64), (320, 240), (1008, 608)])
def test_frames_of_hevc(size: tuple[int, int], pixel_format: str, in_band: bool) -> None:
    """x265 writes whole coding units of 16 pixels, which these sides are."""
    width, height = size
    data = heic(hevc_units(width, height, pixel_format), in_band)
    assert is_worth_decoding(data, width * height // 4)
    assert not is_worth_decoding(data, width * height // 4 - 1)


def test_many_frames_of_hevc() -> None:
    units = hevc_units(64, 64, "yuv420p")
    assert is_worth_decoding(heic(units, items=16), 64 * 64)
    assert not is_worth_decoding(heic(units, items=17), 64 * 64)
    assert is_worth_decoding(heic(units, items=48), 3 * 64 * 64)  # a phone's picture is a grid of tiles


def test_what_is_none_has_a_reason() -> None:
    whole = heic(hevc_units(64, 64, "yuv420p"))
    assert is_worth_decoding(whole, 64 * 64)
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match=r"(cut|no coded frames)"):
            is_worth_decoding(whole[:cut], 64 * 64)
    for size in (0, 4096):  # parameter sets that say nothing, and ones without end
        with pytest.raises(ValueError, match=r"(cut|no coded frames)"):
            is_worth_decoding(heic([b"\x42\x01" + bytes(size)], in_band=True), 64 * 64)


def test_extents_that_overlap_are_not_copied() -> None:
    """An item of 4,000 extents, each the whole file, would be 4,000 copies of it."""
    extents = struct.pack(">HHHH", 1, 0, 0, 4000) + struct.pack(">II", 0, 0) * 4000
    entry = box(b"infe", struct.pack(">BxxxHH4s", 2, 1, 0, b"av01"), b"\0")
    items = [box(b"iinf", bytes(4), struct.pack(">H", 1), entry)]
    items += [box(b"iloc", bytes([1, 0, 0, 0, 0x44, 0]), struct.pack(">H", 1), extents)]
    data = box(b"ftyp", b"avif", bytes(4)) + box(b"meta", bytes(4), *items) + bytes(1 << 16)
    with pytest.raises(ValueError, match="larger than the file"):
        list(coded_items(data))


def test_associations_end_with_their_box() -> None:
    """A box of a few bytes that claims 4,096 entries of 255 would read what follows it, box after box."""
    claimed = box(b"ipma", bytes(4), struct.pack(">I", 4096), struct.pack(">HB", 1, 255))
    properties = box(b"iprp", box(b"ipco", box(b"irot", b"\1")), claimed)
    data = box(b"meta", bytes(4), box(b"pitm", bytes(4), struct.pack(">H", 1)), properties) + b"\xff" * (1 << 16)
    with pytest.raises(ValueError, match="cut"):
        container_orientation(data)
