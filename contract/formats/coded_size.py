"""What the frames inside an AVIF or HEIC file cost to decode: they may be far larger than the file says its picture is.

Pillow tells the size in the container's header. The coded pictures have their own, which the decoder believes, makes,
and only then scales or refuses: some kilobytes could ask for 268 million pixels.

AV1 Bitstream Specification, 5.3 to 5.5; ITU-T H.265, 7.3.1 and 7.3.2.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from qwen3vl_edge.contract.formats.bits import Bits
from qwen3vl_edge.contract.formats.heif_boxes import HEVC, MOST_ENTRIES, coded_items, decoder_configurations

# A frame's side may be bounded by no more than its number of bits, to twice the truth.
_LOOSE = 4
_TOGETHER = 4 * _LOOSE  # transparency is a frame of its own, and so is the still picture beside an animation
_SEQUENCE_HEADER = 1  # of AV1's OBUs
_HEADER_BYTES = 512  # of a parameter set; its sides stand before
_SPS = 33  # of HEVC's NAL units


def is_worth_decoding(data: bytes, most: int) -> bool:
    """Whether the frames that are decoded for the first picture of an AVIF or HEIC file stay near `most` pixels.

    Raises:
        ValueError: not such a file, or one without frames, or in more pieces than encoders write.
    """
    try:
        frames = list(_frames(data))
    except (IndexError, struct.error, OverflowError) as error:
        raise ValueError(f"its boxes are cut ({error})") from None
    if not any(frames):
        raise ValueError("it has no coded frames")
    return max(frames) <= _LOOSE * most and sum(frames) <= _TOGETHER * most


def _frames(data: bytes) -> Iterator[int]:
    """A bound on the pixels of each frame."""
    shared, length_size = 0, 4
    for configuration in decoder_configurations(data):
        length_size = (configuration[21] & 3) + 1
        shared = max([shared, *map(_sps_pixels, _configured(configuration))])
    for kind, payload in coded_items(data):
        if kind in HEVC:
            yield max([shared, *map(_sps_pixels, _nal_units(payload, length_size))])
        else:
            yield _frame_bound(payload)


def _configured(configuration: bytes) -> Iterator[bytes]:
    """NAL units of an `hvcC` box."""
    place = 23
    for _ in range(configuration[22]):
        (count,) = struct.unpack_from(">H", configuration, place + 1)
        place += 3
        for _ in range(count):
            (size,) = struct.unpack_from(">H", configuration, place)
            yield configuration[place + 2 : place + 2 + size]
            place += 2 + size


def _nal_units(payload: bytes, length_size: int) -> Iterator[bytes]:
    place = 0
    for _ in range(MOST_ENTRIES):
        if place + length_size > len(payload):
            return
        size = int.from_bytes(payload[place : place + length_size], "big")
        place += length_size
        yield payload[place : place + min(size, _HEADER_BYTES)]
        place += size
    raise ValueError("it has too many NAL units")


def _sps_pixels(unit: bytes) -> int:
    """Of `seq_parameter_set_rbsp`; 0 of another NAL unit, or of another layer's."""
    if len(unit) < 3 or unit[0] >> 1 & 63 != _SPS or (unit[0] & 1) << 5 | unit[1] >> 3:
        return 0
    bits = Bits(unit[2:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + 96)  # the general profile, tier and level
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.exponential()
    if bits.exponential() == 3:  # 4:4:4
        bits.read(1)
    return bits.exponential() * bits.exponential()


def _frame_bound(payload: bytes) -> int:
    """The largest frame that its sequence headers allow."""
    place, most = 0, 0
    for _ in range(MOST_ENTRIES):
        if place >= len(payload):
            return most
        header = payload[place]
        place += 2 if header & 4 else 1
        size = len(payload) - place
        if header & 2:
            size, place = _leb128(payload, place)
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            most = max(most, _sequence_bound(payload[place : place + size]))
        place += size
    raise ValueError("it has too many OBUs")


def _leb128(payload: bytes, place: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = payload[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("a length in its AV1 data is too long")


def _sequence_bound(header: bytes) -> int:
    """Pixels of `sequence_header_obu`; where a frame's header may override them, as many as fit their bits."""
    bits = Bits(header[:512])
    bits.read(4)  # profile, still picture
    is_reduced = bits.read(1)
    if is_reduced:
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    if is_reduced:
        return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)
    return 1 << (width_bits + height_bits)


def _skip_operating_points(bits: Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing information
        bits.read(64)
        if bits.read(1):
            bits.exponential()
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
