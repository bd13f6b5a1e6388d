"""How many samples an MP4 or QuickTime file claims to have, found before a demuxer is given the file.

A demuxer builds an index of all samples as it opens a file, 24 bytes and more for each, and tables of constant size or
duration claim millions in eight bytes: five kilobytes became 3.4 GB. Boxes: ISO/IEC 14496-12; `mov.c` of FFmpeg 8 for
what becomes an entry of the index. Matroska, AVI, MPEG-TS and the others list their samples one by one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen3vl_edge.contract.errors import InputError, LimitError

MAX_SAMPLES = 2_000_000  # picture and sound of 7 hours; 50 to 100 MB of index
SAMPLES_PER_ENTRY = 1024  # of uncompressed sound
MAX_BOXES, MAX_DEPTH = 100_000, 12
# Within them FFmpeg looks for boxes, whatever the standard says of their places.
_CONTAINERS = frozenset(
    b"moov trak edts mdia minf stbl dinf udta mvex moof traf wave sinf schi tref tapt gmhd iprp ipco".split()
)
Box = tuple[bytes, int, int]


@dataclass
class _Track:
    """What is known of a track: counts of its tables.

    Attributes:
        edits: for each of them the demuxer lists the samples again.
        chunked: samples by chunk, the only ones that count for uncompressed sound.
    """

    sound: bool = False
    one_tick: bool = False
    sizes: int = 0
    chunks: int = 0
    chunked: tuple[tuple[int, int], ...] = ()
    edits: int = 1

    @property
    def entries(self) -> int:
        if not (self.sound and self.one_tick):
            return self.sizes * self.edits
        ends = [first for first, _ in self.chunked[1:]] + [self.chunks + 1]
        samples = sum(each * max(end - first, 0) for (first, each), end in zip(self.chunked, ends, strict=True))
        return max(samples, self.sizes) // SAMPLES_PER_ENTRY * self.edits


def check_claimed_samples(path: Path, label: str) -> None:
    """Check a clip's file; one of another format passes.

    Raises:
        InputError: it cannot be read, or has a compressed header.
        LimitError: more samples or boxes than any real clip has.
    """
    try:
        with path.open("rb") as file:
            claimed = _claimed(file, os.fstat(file.fileno()).st_size, label)
    except (OSError, struct.error) as error:
        raise InputError(f"clip {label} cannot be read ({error})", field="video") from None
    if claimed > MAX_SAMPLES:
        raise LimitError(
            f"clip {label} claims too many frames",
            field="video",
            expected=f"at most {MAX_SAMPLES} of picture and sound",
            got=claimed,
            remedy="Send a shorter clip.",
        )


def _claimed(file: BinaryIO, size: int, label: str) -> int:
    """Entries of the demuxer's index, or a few more."""
    tracks, fragments = [_Track()], 0
    for number, (kind, start, end) in enumerate(_boxes(file, 0, size)):
        if number > MAX_BOXES:
            raise LimitError(f"clip {label} has too many boxes", field="video", expected=f"at most {MAX_BOXES}")
        track = tracks[-1]
        if kind == b"cmov":  # a header in zlib, a thousandfold at most
            raise InputError(f"clip {label} has a compressed header", field="video", remedy="Convert it to MP4.")
        if kind == b"trak":
            tracks.append(_Track())
        elif kind == b"hdlr":
            track.sound = _bytes(file, start + 8, 4) == b"soun"
        elif kind == b"elst":
            track.edits = max(track.edits, _number(file, start + 4))
        elif kind in (b"stsz", b"stz2"):
            track.sizes = max(track.sizes, _number(file, start + 8))
        elif kind == b"stts":
            track.one_tick = _number(file, start + 4) == 1 and _number(file, start + 12) == 1
        elif kind in (b"stco", b"co64"):
            track.chunks = max(track.chunks, min(_number(file, start + 4), (end - start) // 4))
        elif kind == b"stsc":
            track.chunked = _chunked(file, start, end)
        elif kind == b"trun":
            fragments += _number(file, start + 4)
    return fragments + sum(track.entries for track in tracks)


def _boxes(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[Box]:
    """Kind, start and end of the content of each box, children after their parents."""
    while end - start >= 8:
        size, kind, header = _number(file, start), _bytes(file, start + 4, 4), 8
        if size == 1 and end - start >= 16:
            size, header = struct.unpack(">Q", _bytes(file, start + 8, 8))[0], 16
        stop = end if size == 0 else min(start + size, end)
        if stop < start + header:
            return
        yield kind, start + header, stop
        if kind in _CONTAINERS and depth < MAX_DEPTH:
            yield from _boxes(file, start + header, stop, depth + 1)
        elif kind == b"meta":  # with version and flags in MP4, without in QuickTime
            yield from _boxes(file, start + header + 4, stop, MAX_DEPTH)
        start = stop


def _chunked(file: BinaryIO, start: int, end: int) -> tuple[tuple[int, int], ...]:
    """First chunk and samples of each chunk, of a `stsc` box."""
    count = min(_number(file, start + 4), (end - start - 8) // 12)
    table = struct.unpack(f">{3 * count}I", _bytes(file, start + 8, 12 * count)) if count > 0 else ()
    return tuple(zip(table[::3], table[1::3], strict=True))


def _number(file: BinaryIO, offset: int) -> int:
    return int(struct.unpack(">I", _bytes(file, offset, 4))[0])


def _bytes(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)
