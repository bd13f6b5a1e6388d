"""Clips that tests write."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def lossless_clip(path: Path, count: int, height: int = 120, width: int = 160, fps: int = 2) -> list[NDArray[np.uint8]]:
    """A file whose every reader gives the very pixels that were written."""
    rng = np.random.default_rng(7)
    pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return pictures
