"""The boxes of AVIF and HEIC files: where the coded pictures lie, and how they are turned.

ISO/IEC 14496-12, boxes; 23008-12, items.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MOST_ENTRIES = 4096  # boxes, items and extents, each; a grid of tiles has some tens
AV1, HEVC = (b"av01",), (b"hvc1", b"hev1")
CODED = (*AV1, *HEVC)
_FULL = 4  # a full box's version and flags, above its content
# EXIF's orientations by where the four corners of the coded picture end: top left, top right, bottom left, right.
_ORIENTATIONS = {
    (0, 1, 2, 3): 1,
    (1, 0, 3, 2): 2,
    (3, 2, 1, 0): 3,
    (2, 3, 0, 1): 4,
    (0, 2, 1, 3): 5,
    (2, 0, 3, 1): 6,
    (3, 1, 2, 0): 7,
    (1, 3, 0, 2): 8,
}


@dataclass(frozen=True)
class _Box:
    kind: bytes
    start: int
    end: int


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    for _ in range(MOST_ENTRIES):
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


def coded_items(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each item that may be a picture, and of the first sample of each track, whose kind is empty.

    Raises:
        ValueError, IndexError, struct.error: not such a file, or in more pieces than encoders write.
    """
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"meta":
            yield from _items(data, box.start + _FULL, box.end)
        elif box.kind == b"moov":
            for table in _inside(data, box.start, box.end, b"trak", b"mdia", b"minf", b"stbl"):
                yield b"", _first_sample(data, table)


def _first_sample(data: bytes, table: _Box) -> bytes:
    size = place = 0
    for box in _boxes(data, table.start, table.end):
        if box.kind == b"stsz":
            same, count = struct.unpack_from(">II", data, box.start + _FULL)
            size = same or (struct.unpack_from(">I", data, box.start + _FULL + 8)[0] if count else 0)
        elif box.kind in (b"stco", b"co64"):
            (place,) = struct.unpack_from(">I" if box.kind == b"stco" else ">Q", data, box.start + _FULL + 4)
    return data[place : place + size]


def _items(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    kinds: dict[int, bytes] = {}
    places: dict[int, tuple[bool, list[tuple[int, int]]]] = {}
    own = _Box(b"idat", 0, 0)
    for box in _boxes(data, start, end):
        if box.kind == b"iinf":
            kinds |= dict(_item_kinds(data, box))
        elif box.kind == b"iloc":
            places |= _ItemPlaces(data, box).read()
        elif box.kind == b"idat":
            own = box
    for item, (is_inside, extents) in places.items():
        kind = kinds.get(item)
        if kind not in CODED:
            continue
        low, high = (own.start, own.end) if is_inside else (0, len(data))
        pieces, left = [], len(data)
        for offset, length in extents:
            piece_end = high if length == 0 else min(low + offset + length, high)
            left -= max(0, piece_end - low - offset)
            if left < 0:  # extents that overlap
                raise ValueError("an item is larger than the file")
            pieces.append(data[low + offset : piece_end])
        yield kind, b"".join(pieces)


def _item_kinds(data: bytes, box: _Box) -> Iterator[tuple[int, bytes]]:
    skipped = _FULL + (2 if data[box.start] == 0 else 4)
    for entry in _inside(data, box.start + skipped, box.end, b"infe"):
        layout = ">H2x4s" if data[entry.start] < 3 else ">I2x4s"
        number, kind = struct.unpack_from(layout, data, entry.start + _FULL)
        yield number, kind


class _ItemPlaces:
    """Reads an `iloc` box."""

    def __init__(self, data: bytes, box: _Box) -> None:
        self._data, self._place, self._end, self._left = data, box.start, box.end, MOST_ENTRIES

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
        if self._place > self._end:
            raise ValueError("its boxes are cut")
        return int.from_bytes(self._data[self._place - size : self._place], "big")


def decoder_configurations(data: bytes) -> Iterator[bytes]:
    """Content of the `hvcC` boxes of all items. Raises: as `coded_items`."""
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"meta":
            for found in _inside(data, box.start + _FULL, box.end, b"iprp", b"ipco", b"hvcC"):
                yield data[found.start : found.end]


def container_orientation(data: bytes) -> int:
    """How the primary item's `irot` and `imir` turn it, as the number that EXIF has for that.

    23008-12, 6.5.10 and 6.5.12: quarters of a turn anticlockwise; 0 exchanges top and bottom, 1 left and right.
    Decoders do so themselves, and take no notice of an orientation in the item's EXIF.

    Raises:
        ValueError, IndexError, struct.error: as `coded_items`.
    """
    corners = (0, 1, 2, 3)
    for kind, value in _primary_properties(data):
        if kind == b"irot":
            for _ in range(value & 3):
                corners = (corners[1], corners[3], corners[0], corners[2])
        elif kind == b"imir":
            top, bottom = corners[:2], corners[2:]
            corners = (*top[::-1], *bottom[::-1]) if value & 1 else (*bottom, *top)
    return _ORIENTATIONS[corners]


def _primary_properties(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and first byte of each property of the primary item, in the order in which they apply."""
    for meta in _inside(data, 0, len(data), b"meta"):
        start, end = meta.start + _FULL, meta.end
        primary = next((_number_at(data, box.start, 2, 4) for box in _inside(data, start, end, b"pitm")), None)
        properties = list(_inside_all(data, start, end))
        for box in _inside(data, start, end, b"iprp", b"ipma"):
            for index in _associated(data, box, primary):
                if 0 < index <= len(properties):
                    found = properties[index - 1]
                    yield found.kind, data[found.start] if found.end > found.start else 0


def _inside_all(data: bytes, start: int, end: int) -> Iterator[_Box]:
    for container in _inside(data, start, end, b"iprp", b"ipco"):
        yield from _boxes(data, container.start, container.end)


def _number_at(data: bytes, start: int, short: int, long: int) -> int:
    """The number at the start of a full box's content, whose size its version says."""
    size = short if data[start] == 0 else long
    return int.from_bytes(data[start + _FULL : start + _FULL + size], "big")


def _associated(data: bytes, box: _Box, item: int | None) -> Iterator[int]:
    """Indices of an item's properties in an `ipma` box, from 1."""
    id_size, index_size = 4 if data[box.start] else 2, 2 if data[box.start + 3] & 1 else 1
    (entries,) = struct.unpack_from(">I", data, box.start + _FULL)
    place = box.start + _FULL + 4
    for _ in range(min(entries, MOST_ENTRIES)):
        number = int.from_bytes(data[place : place + id_size], "big")
        count, place = data[place + id_size], place + id_size + 1
        if place + count * index_size > box.end:
            raise ValueError("its boxes are cut")
        for _ in range(count):
            if number == item:
                most = (1 << 8 * index_size - 1) - 1  # the highest bit says that it is essential
                yield int.from_bytes(data[place : place + index_size], "big") & most
            place += index_size
