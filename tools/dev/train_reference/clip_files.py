"""Clips as MP4 files, for qwen-vl-utils' video readers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.tools.dev.train_reference.scenes import Clip, draw_scene
from qwen3vl_edge.tools.dev.train_reference.sizes import SAMPLE_FPS


def write_clip(clip: Clip, path: Path) -> None:
    """H.264 at 2 frames a second, so that qwen-vl-utils takes every frame; near lossless."""
    import av

    first = clip.frames[0]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=int(SAMPLE_FPS))
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv444p"
        stream.options = {"crf": "6", "preset": "slow"}
        for scene in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(draw_scene(scene)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def temporary_clip(clip: Clip, name: str) -> Path:
    """The clip as a file that lives as long as the process.

    Why a file: given a list of frames, qwen-vl-utils 0.0.14 first resizes each to multiples of 64 pixels
    (`fetch_video` hands `fetch_image` the merged patch size as the patch size), which blurs small clips.
    """
    path = _folder() / f"{name}.mp4"
    if not path.exists():
        write_clip(clip, path)
    return path


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="qwen3vl-clips-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
