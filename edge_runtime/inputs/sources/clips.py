"""A clip as qwen-vl-utils takes it: a path, a URL, or a list of pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import open_image
from qwen3vl_edge.edge_runtime.inputs.sources.read import file_path, read_source


def open_clip(source: Any) -> str | list[Any]:
    """What qwen-vl-utils reads a clip from: a path or URL, or PIL images.

    A URL is left to the video reader, which seeks in it and does not need the whole file.

    Args:
        source: path, `file://` or `http(s)://` URL, or a list of what `open_image` opens.

    Raises:
        InputError: no such file, no frame, or a frame that cannot be opened.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("clip has no frames", field="video")
        return [open_image(frame) for frame in source]
    clip = MediaSource("video", str(source), "video")
    if clip.scheme in ("http", "https"):
        return clip.reference
    path = str(file_path(clip.reference))
    if not os.path.isfile(path):  # unlike Path.is_file it takes a name of any length
        raise InputError(f"no such clip: {clip.label}", field="video")
    return path


def clip_file(reference: str, access: AccessPolicy, scratch: Path) -> str:
    """The path of a clip; what is not a file already is written into the folder `scratch`. Blocks.

    Raises:
        InputError: not allowed, missing or unreachable.
        LimitError: too large.
    """
    content = read_source(MediaSource("video", reference, "video_url"), access)
    if isinstance(content, Path):
        return str(content)
    path = scratch / f"clip-{len(list(scratch.iterdir()))}"
    path.write_bytes(content)
    return str(path)
