"""A clip as a file on this machine, or as a list of pictures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.sources.access import UNRESTRICTED, AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import open_picture
from qwen3vl_edge.edge_runtime.inputs.sources.read import file_path, read_source


@dataclass(frozen=True)
class ClipFile:
    """A clip's file.

    Attributes:
        label: what the message calls it, for errors: the file may be a copy with a name of ours.
    """

    path: Path
    label: str


@contextmanager
def open_clip(source: Any, budget: MediaBudget) -> Iterator[ClipFile | list[Any]]:
    """A clip's file, kept for as long as the block runs where it is a URL or data URI; or its frames as PIL images.

    Args:
        source: path, `file://` or `http(s)://` URL, data URI, or a list of what `open_image` opens; or a file that was
            opened before.
        budget: pays for the frames of a list before the first is decoded.

    Raises:
        InputError: no such file, no frame, or one that cannot be opened or fetched.
        LimitError: too large.
    """
    if isinstance(source, ClipFile):
        yield source
        return
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("clip has no frames", field="video")
        frames = [open_picture(frame, limits=budget.limits) for frame in source]
        budget.add_clip_pixels(sum(frame.pixels for frame in frames), f"{len(frames)} frames")
        yield [frame.decode() for frame in frames]
        return
    if not isinstance(source, (str, Path)):
        expected = "path, URL, data URI or list of pictures"
        raise InputError("not a clip", field="video", expected=expected, got=type(source).__name__)
    clip = MediaSource("video", str(source), "video")
    if clip.scheme != "file":
        with tempfile.TemporaryDirectory(prefix="qwen3vl-edge-") as scratch:
            yield ClipFile(clip_file(clip.reference, UNRESTRICTED, Path(scratch)), clip.label)
        return
    path = file_path(clip.reference)
    if not os.path.isfile(path):  # unlike Path.is_file it takes a name of any length
        raise InputError(f"no such clip: {clip.label}", field="video")
    yield ClipFile(path, clip.label)


def clip_file(reference: str, access: AccessPolicy, scratch: Path) -> Path:
    """The path of a clip; what is not a file already is written into the folder `scratch`. Blocks.

    Raises:
        InputError: not allowed, missing or unreachable.
        LimitError: too large.
    """
    content = read_source(MediaSource("video", reference, "video_url"), access)
    return content if isinstance(content, Path) else write_clip(content, scratch)


def write_clip(content: bytes, scratch: Path) -> Path:
    """A new file in the folder `scratch`."""
    handle, name = tempfile.mkstemp(prefix="clip-", dir=scratch)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return Path(name)
