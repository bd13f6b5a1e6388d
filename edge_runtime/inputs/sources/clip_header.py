"""A clip's header: what it says about its frames is checked before torch, or a reader of clips, is loaded for them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from qwen3vl_edge.contract.errors import ContractError, InputError, LimitError
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.mp4_index import check_claimed_samples

# Demuxers of libavformat. Others are no containers of clips, or read further files (hls, concat, dash, sdp).
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"


def check_clip(path: Path, label: str, limits: MediaLimits) -> None:
    """Check the container, how many frames it claims, and their size; none is decoded.

    Raises:
        InputError: not a clip.
        LimitError: its frames are too large, or more than its file can hold.
    """
    check_claimed_samples(path, label)
    try:
        import av
    except ImportError:
        raise InputError(
            "clips cannot be read here",
            field="video",
            expected="PyAV",
            remedy="Install it with: pip install 'qwen3vl-edge[edge]'",
        ) from None
    with reading(label):
        # The decoder refuses larger frames, which it would decode to find out about the stream.
        most = {"max_pixels": str(limits.max_picture_pixels), "threads": "1"}
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        with av.open(str(path), container_options=options, stream_options=[most]) as container:
            if not container.streams.video:
                raise InputError(f"clip {label} has no picture", field="video")
            context = container.streams.video[0].codec_context
            height, width = context.height, context.width
    check_frame_size(label, height, width, limits)


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
        # Asked for the first time, qwen-vl-utils prints the name of its reader to stderr.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except ContractError:
        raise
    except Exception as error:  # each reader raises its own kinds
        reason = str(error).splitlines()[0][:160] if str(error) else repr(error)
        raise InputError(
            f"clip {label} cannot be read ({reason})",
            field="video",
            remedy="Check the file, and that decord or torchcodec is installed.",
        ) from None
