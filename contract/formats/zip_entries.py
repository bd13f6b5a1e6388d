"""Read an untrusted ZIP file of stored entries: no decompression, no allocation from sizes that the file claims.

Only the form that `torch.save` writes is accepted: one disk, no comment, no compression, no encryption, entries before
the central directory. Format: PKWARE's APPNOTE, sections 4.3 and 4.4.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from qwen3vl_edge.contract.errors import WireError

MAX_ENTRIES = 16
_END, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
_END_RECORD = struct.Struct("<4s4H2IH")
_CENTRAL_RECORD = struct.Struct("<4s6H3I5H2I")
_LOCAL_RECORD = struct.Struct("<4s5H3I2H")
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11


def read_entries(data: bytes, field: str) -> dict[str, memoryview]:
    """The entries by name, as views of `data`; every checksum is verified.

    Args:
        field: the field that an error names.

    Raises:
        WireError: not such a ZIP file; names the part at fault.
    """
    start, end, count = _directory(data, field)
    entries: dict[str, memoryview] = {}
    at = start
    for _ in range(count):
        if at + _CENTRAL_RECORD.size > end:
            raise _bad(field, "the directory is truncated")
        record = _CENTRAL_RECORD.unpack_from(data, at)
        name_start, at = at + _CENTRAL_RECORD.size, at + _CENTRAL_RECORD.size + sum(record[10:13])
        if at > end:
            raise _bad(field, "the directory is truncated")
        name = _name(data[name_start : name_start + record[10]], field)
        if name in entries:
            raise _bad(field, f"{name!r} occurs twice")
        entries[name] = _entry(data, name, record, start, field)
    if at != end:
        raise _bad(field, "the directory is longer than its entries")
    return entries


def _directory(data: bytes, field: str) -> tuple[int, int, int]:
    """Start, end and number of entries of the central directory."""
    if len(data) < _END_RECORD.size or data[-_END_RECORD.size : -_END_RECORD.size + 4] != _END:
        raise _bad(field, "the end-of-directory record is missing")
    _, disk, first_disk, here, count, size, start, comment = _END_RECORD.unpack_from(data, len(data) - _END_RECORD.size)
    if disk or first_disk or comment or here != count:
        raise _bad(field, "several disks, or a comment")
    if not 1 <= count <= MAX_ENTRIES:
        raise _bad(field, "number of entries", f"1 to {MAX_ENTRIES}", count)
    if start + size > len(data) - _END_RECORD.size:
        raise _bad(field, "the directory lies outside of the file")
    return start, start + size, count


def _name(raw: bytes, field: str) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise _bad(field, "invalid entry name")
    return name


def _entry(data: bytes, name: str, record: tuple[Any, ...], directory: int, field: str) -> memoryview:
    """One entry's bytes."""
    magic, _, _, flags, method, _, _, crc, packed, size, _, _, _, disk, _, _, offset = record
    if magic != _CENTRAL or disk:
        raise _bad(field, "the directory is malformed")
    if flags & ~(_DESCRIPTOR | _UTF8) or method != 0 or packed != size:
        raise _bad(field, f"{name!r} is compressed or encrypted", "a stored entry")
    if offset + _LOCAL_RECORD.size > directory:
        raise _bad(field, f"{name!r} lies outside of the file")
    local = _LOCAL_RECORD.unpack_from(data, offset)
    start = offset + _LOCAL_RECORD.size + local[9] + local[10]
    if local[0] != _LOCAL or local[2] != flags or local[3] != 0:
        raise _bad(field, f"{name!r} does not match its directory record")
    # With a data descriptor the sizes follow the data; the directory's sizes are checked in both cases.
    if not flags & _DESCRIPTOR and local[6:9] != (crc, size, size):
        raise _bad(field, f"size or checksum of {name!r} does not match its directory record")
    if start + size > directory:
        raise _bad(field, f"{name!r} lies outside of the file")
    if data[offset + _LOCAL_RECORD.size : start - local[10]] != name.encode("ascii"):
        raise _bad(field, f"{name!r} does not match its directory record")
    content = memoryview(data)[start : start + size]
    if zlib.crc32(content) != crc:
        raise _bad(field, f"{name!r} is damaged", f"checksum {crc:08x}", f"{zlib.crc32(content):08x}")
    return content


def _bad(field: str, what: str, expected: object = None, got: object = None) -> WireError:
    return WireError(f"not a ZIP file as torch.save writes it: {what}", field=field, expected=expected, got=got)
