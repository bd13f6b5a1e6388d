"""What the frames inside an AVIF file cost to decode: they may be far larger than the file says that its picture is.

Pillow tells the size in the container's header. The AV1 data have their own, which the decoder believes, makes, and
only then scales: some kilobytes could ask for 268 million pixels.

ISO/IEC 14496-12 (boxes), 23008-12 (items), and the AV1 Bitstream Specification, 5.3 to 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MOST_ENTRIES = 4096  # boxes, items, extents and OBUs, each; a grid of tiles has some tens
# A frame's side may be bounded by no more than its number of bits, to twice the truth.
_LOOSE = 4
_TOGETHER = 4 * _LOOSE  # transparency is a frame of its own, and so is the still picture beside an animation
_SEQUENCE_HEADER = 1
_AV1 = b"av01"
# Above a box's own children: a full box's version and flags, and in `iinf` the number of items.
_FULL = 4


def is_worth_decoding(data: bytes, most: int) -> bool:
    """Whether the AV1 frames that are decoded for the first picture of an AVIF file stay near `most` pixels.

    Raises:
        ValueError: not such a file, or one without frames, or in more pieces than encoders write.
    """
    try:
        frames = [_frame_bound(payload) for payload in _payloads(data)]
    except (IndexError, struct.error, OverflowError) as error:
        raise ValueError(f"its boxes are cut ({error})") from None
    if not any(frames):
        raise ValueError("it has no AV1 frames")
    return max(frames) <= _LOOSE * most and sum(frames) <= _TOGETHER * most


@dataclass(frozen=True)
class _Box:
    kind: bytes
    start: int
    end: int


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    for _ in range(_MOST_ENTRIES):
        if end - start < 8:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        elif size == 0:
            size = end - start
        if size < header or start + size > end:
            raise ValueError("its boxes are cut")
        yield _Box(kind, start + header, start + size)
        start += size
    raise ValueError("it has too many boxes")


def _inside(data: bytes, start: int, end: int, *path: bytes) -> Iterator[_Box]:
    """Boxes at a path."""
    for box in _boxes(data, start, end):
        if box.kind == path[0]:
            if len(path) == 1:
                yield box
            else:
                yield from _inside(data, box.start, box.end, *path[1:])


def _payloads(data: bytes) -> Iterator[bytes]:
    """AV1 data of all items, and the first sample of each track."""
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"meta":
            yield from _items(data, box.start + _FULL, box.end)
        elif box.kind == b"moov":
            for table in _inside(data, box.start, box.end, b"trak", b"mdia", b"minf", b"stbl"):
                yield _first_sample(data, table)


def _first_sample(data: bytes, table: _Box) -> bytes:
    size = place = 0
    for box in _boxes(data, table.start, table.end):
        if box.kind == b"stsz":
            same, count = struct.unpack_from(">II", data, box.start + _FULL)
            size = same or (struct.unpack_from(">I", data, box.start + _FULL + 8)[0] if count else 0)
        elif box.kind in (b"stco", b"co64"):
            (place,) = struct.unpack_from(">I" if box.kind == b"stco" else ">Q", data, box.start + _FULL + 4)
    return data[place : place + size]


def _items(data: bytes, start: int, end: int) -> Iterator[bytes]:
    kinds: dict[int, bytes] = {}
    places: dict[int, tuple[bool, list[tuple[int, int]]]] = {}
    own = _Box(b"idat", 0, 0)
    for box in _boxes(data, start, end):
        if box.kind == b"iinf":
            kinds |= dict(_item_kinds(data, box))
        elif box.kind == b"iloc":
            places |= _ItemPlaces(data, box.start).read()
        elif box.kind == b"idat":
            own = box
    for item, (is_inside, extents) in places.items():
        if kinds.get(item) != _AV1:
            continue
        low, high = (own.start, own.end) if is_inside else (0, len(data))
        pieces = []
        for offset, length in extents:
            piece_end = high if length == 0 else min(low + offset + length, high)
            pieces.append(data[low + offset : piece_end])
        yield b"".join(pieces)


def _item_kinds(data: bytes, box: _Box) -> Iterator[tuple[int, bytes]]:
    skipped = _FULL + (2 if data[box.start] == 0 else 4)
    for entry in _inside(data, box.start + skipped, box.end, b"infe"):
        layout = ">H2x4s" if data[entry.start] < 3 else ">I2x4s"
        number, kind = struct.unpack_from(layout, data, entry.start + _FULL)
        yield number, kind


class _ItemPlaces:
    """Reads an `iloc` box."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._place, self._left = data, start, _MOST_ENTRIES

    def read(self) -> dict[int, tuple[bool, list[tuple[int, int]]]]:
        """By item: whether it lies in `idat`, and its extents' offsets and lengths; 0 for all that follows."""
        version = self._number(1)
        self._number(3)
        sizes = self._number(2)
        offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        found: dict[int, tuple[bool, list[tuple[int, int]]]] = {}
        for _ in range(self._number(2 if version < 2 else 4)):
            item = self._number(2 if version < 2 else 4)
            is_inside = version > 0 and self._number(2) & 15 == 1
            self._number(2)
            base, extents = self._number(base_size), []
            for _ in range(self._number(2)):
                self._number(index_size if version > 0 else 0)
                extents.append((base + self._number(offset_size), self._number(length_size)))
                self._count()
            self._count()
            found[item] = is_inside, extents
        return found

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has too many items")

    def _number(self, size: int) -> int:
        self._place += size
        if self._place > len(self._data):
            raise ValueError("its boxes are cut")
        return int.from_bytes(self._data[self._place - size : self._place], "big")


def _frame_bound(payload: bytes) -> int:
    """The largest frame that its sequence headers allow."""
    place, most = 0, 0
    for _ in range(_MOST_ENTRIES):
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


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("its sequence header is cut")
        return self._bits >> self._left & ((1 << count) - 1)

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self.read(1):
            zeros += 1
        self.read(zeros if zeros < 32 else 0)


def _sequence_bound(header: bytes) -> int:
    """Pixels of `sequence_header_obu`; where a frame's header may override them, as many as fit their bits."""
    bits = _Bits(header[:512])
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


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing information
        bits.read(64)
        if bits.read(1):
            bits.skip_uvlc()
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
