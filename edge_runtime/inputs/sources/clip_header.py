"""A clip's header: what it says about its frames is checked before torch, or a reader of clips, is loaded for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_edge.contract.errors import ContractError, InputError, LimitError
from qwen3vl_edge.edge_runtime.inputs.sources.containers import Kind, kind_of, open_container
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.mp4_index import check_claimed_samples


@dataclass(frozen=True)
class ClipHeader:
    """What is known of a clip's file before a frame is decoded.

    Attributes:
        for_every_reader: whether readers that choose a demuxer themselves may be given the file; else it is for
            `open_container` alone.
    """

    kind: Kind
    for_every_reader: bool


def check_clip(path: Path, label: str, limits: MediaLimits) -> ClipHeader:
    """Check the container, how many frames it claims, and their size; none is decoded.

    Raises:
        InputError: not a clip.
        LimitError: its frames are too large, or more than its file can hold.
    """
    check_claimed_samples(path, label)
    with reading(label):
        kind, alone = kind_of(path, label)
    try:
        import av  # noqa: F401 - a missing package is reported now
    except ImportError:
        raise InputError(
            "clips cannot be read here",
            field="video",
            expected="PyAV",
            remedy="Install it with: pip install 'qwen3vl-edge[edge-lean]'",
        ) from None
    with reading(label), open_container(path, kind, limits.max_picture_pixels, decoders=False) as opened:
        if not opened.streams.video:
            raise InputError(f"clip {label} has no picture", field="video")
        sizes = [(stream.codec_context.height, stream.codec_context.width) for stream in opened.streams.video]
    for height, width in sizes:
        check_frame_size(label, height, width, limits)
    return ClipHeader(kind, alone and all(height * width for height, width in sizes))


def check_frame_size(label: str, height: int, width: int, limits: MediaLimits) -> None:
    """Hold one frame against the limit of a picture: a decoder keeps up to 16, and a large file allows no larger ones.

    Raises:
        LimitError: a frame has too many pixels.
    """
    most = limits.max_picture_pixels
    if height * width > most:
        raise LimitError(
            f"clip {label} has too large frames",
            field="video",
            expected=f"at most {most} pixels (max_picture_pixels)",
            got=f"{width}x{height}",
            remedy="Make it smaller.",
        )


@contextlib.contextmanager
def reading(label: str) -> Iterator[None]:
    """Whatever a video reader raises within the block becomes an error that names the clip."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:  # each reader raises its own kinds
        raise InputError(
            f"clip {label} cannot be read ({reason_of(error)})",
            field="video",
            remedy="Check the file, or convert it to MP4 with H.264.",
        ) from None


def reason_of(error: Exception) -> str:
    """An error of a video reader in one line, without the name and place that PyAV adds of the file it was given."""
    text = str(getattr(error, "strerror", None) or error)
    return text.splitlines()[0][:160] if text.strip() else type(error).__name__
