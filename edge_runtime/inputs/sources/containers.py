"""The kinds of clip files, told by their first bytes; and a demuxer that opens nothing but the file it was given.

libavformat would choose a demuxer by name and content, and some read further files or addresses: playlists (hls,
dash), scripts (concat), numbered pictures (image2), sessions (sdp, rtsp), subtitles by reference (vobsub). Here the
first bytes decide alone, before any library sees the file, and the demuxer of that kind is named, so that none is
searched for. A kind per row of `KINDS`; magic numbers as in the probe functions of FFmpeg 8 (`mov.c`,
`matroskadec.c`, `avidec.c`, …).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError

_HEAD_BYTES = 2**16
_SYNC, _SYNCS = 0x47, 5  # of a transport stream's packets, and how many in a row are looked for
_PACKETS = {188: 0, 192: 4, 204: 0}  # sizes, and where the sync byte is: plain, M2TS, with Reed-Solomon code
_BOXES = frozenset(b"ftyp moov mdat moof styp sidx pnot udta uuid wide free skip junk pict".split())
_MAIN_BOXES = frozenset((b"ftyp", b"moov", b"mdat"))
# Demuxers of text look no further than to the first zero byte; all binary kinds have one early.
_TEXT_BYTES = 16


@dataclass(frozen=True)
class Kind:
    """A kind of clip file.

    Attributes:
        demuxer: libavformat's name of the one that reads it.
        begins: whether a file's first bytes are such a file's.
        alone: whether they are of no other kind to any libavformat, so that a reader that searches for a demuxer
            finds this one too, and whether it then finds the frame that it seeks.
        timed: whether packets say when frames are shown; else they are in the order in which they are decoded.
    """

    name: str
    demuxer: str
    begins: Callable[[bytes], bool]
    alone: Callable[[bytes], bool]
    timed: bool = True


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: len(head) > _TEXT_BYTES and head.startswith(magic)


def _zero_early(head: bytes) -> bool:
    return 0 in head[:_TEXT_BYTES]


def _is_named_matroska(head: bytes) -> bool:
    """Whether the header's element names the type, which gives libavformat's highest score; RFC 8794, 4 and 11.2."""
    if head[4] & 0x80:
        start, size = 5, head[4] & 0x7F
    else:
        start, size = 12, int.from_bytes(head[5:12], "big") if head[4] == 1 else 0
    header = head[start : start + size]
    return b"\x42\x82\x88matroska" in header or b"\x42\x82\x84webm" in header


def _is_avi(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX", b"AVI\x19")


def _transport_start(head: bytes, offsets: range) -> bool:
    """Whether packets of a transport stream follow each other from one of the offsets on."""
    return any(
        len(head) > start + size * (_SYNCS - 1) and all(head[start + size * n] == _SYNC for n in range(_SYNCS))
        for start in offsets
        for size in _PACKETS
    )


def _is_transport(head: bytes) -> bool:
    return _transport_start(head, range(max(_PACKETS) + 1))


def _never(head: bytes) -> bool:
    """Of kinds without an index of frames.

    decord 0.6 leaves out what stands before the second key frame of a transport stream, and takes other frames of
    program streams and AVI than those asked for.
    """
    return False


KINDS = (
    Kind("MP4 or QuickTime", "mov", lambda head: head[4:8] in _BOXES, lambda head: head[4:8] in _MAIN_BOXES),
    Kind("Matroska or WebM", "matroska", _starts(b"\x1aE\xdf\xa3"), _is_named_matroska),
    Kind("AVI", "avi", _is_avi, _never, timed=False),
    Kind("FLV", "flv", _starts(b"FLV"), _zero_early),
    Kind("ASF or WMV", "asf", _starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), _never),
    Kind("Ogg", "ogg", _starts(b"OggS"), _never),
    Kind("GIF", "gif", _starts(b"GIF87a", b"GIF89a"), _never),
    Kind("MPEG program stream", "mpeg", _starts(b"\x00\x00\x01\xba"), _never),
    Kind("MPEG transport stream", "mpegts", _is_transport, _never),  # last: it has no magic number
)


def kind_of(path: Path, label: str) -> tuple[Kind, bool]:
    """The kind of a clip's file, and whether it is of no other kind to any reader (`Kind.alone`).

    Raises:
        InputError: of none of `KINDS`: a playlist, a script, a picture.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for kind in KINDS:
        if kind.begins(head):
            return kind, kind.alone(head)
    raise InputError(
        f"{label} is not a clip",
        field="video",
        expected=", ".join(kind.name for kind in KINDS),
        got=f"a file that begins with {head[:8]!r}",
        remedy="Playlists and scripts are not followed: send the clip itself.",
    )


@contextmanager
def open_container(path: Path, kind: Kind, most_pixels: int, *, decoders: bool = True) -> Iterator[Any]:
    """PyAV's container, whose demuxer gets the bytes of this file and can open nothing else.

    Args:
        most_pixels: decoders refuse larger frames.
        decoders: some frames may be decoded to find out about the streams; else what the header and the first packets
            say has to do, and nothing is decoded.

    Raises:
        av.FFmpegError, OSError, ValueError: it cannot be read.
    """
    import av

    container_options = {"format_whitelist": kind.demuxer, "protocol_whitelist": "none"}
    if not decoders:
        container_options["codec_whitelist"] = "none"
    limit = {"max_pixels": str(most_pixels)}
    with (
        path.open("rb") as file,
        av.open(
            file,
            format=kind.demuxer,
            options=limit,
            container_options=container_options,
            io_open=_open_nothing,
        ) as container,
    ):
        for stream in container.streams.video:
            stream.codec_context.options = limit
        yield container


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError("a clip's file refers to another one")
