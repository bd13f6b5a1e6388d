"""The settings of one camera."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qwen3vl_edge.contract.errors import InputError

ENCODE = ("on-demand", "always")


@dataclass(frozen=True)
class CameraConfig:
    """One `[cameras.NAME]` table.

    Attributes:
        source: what PyAV opens (rtsp://, http://, a file, …), `/dev/video0`, or `gst:` and a GStreamer pipeline.
        fps: frames taken per second. seconds: length of the window.
        size: HEIGHTxWIDTH in pixels that frames are encoded at; empty for the size that the bucket choice gives.
        encode: "on-demand" encodes at a request what the window lacks, "always" as frames come.
        loop: a file begins again at its end.
        options: FFmpeg's options for the source, such as rtsp_transport.

    Raises:
        InputError: a value out of range.
    """

    name: str
    source: str
    fps: float = 2.0
    seconds: float = 8.0
    size: str = ""
    encode: str = "on-demand"
    loop: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"cameras.{self.name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise InputError("bad camera name", field=where[:80], expected="letters, digits, - and _")
        if not self.source or self.source == "gst:":
            raise InputError("camera without a source", field=f"{where}.source")
        if self.encode not in ENCODE:
            raise InputError("bad setting", field=f"{where}.encode", expected=" or ".join(ENCODE), got=self.encode)
        for name, low, high in (("fps", 0.01, 60), ("seconds", 0.1, 3600)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(
                    f"{name} is out of range", field=f"{where}.{name}", expected=f"{low:g} to {high:g}", got=value
                )
        if self.size and not re.fullmatch(r"\d+x\d+", self.size):
            raise InputError("bad size", field=f"{where}.size", expected="HEIGHTxWIDTH", got=self.size)

    @property
    def shown_source(self) -> str:
        """The source without what may be a secret: user, password and query."""
        if self.source.startswith("gst:"):
            return "gst:…"
        parts = urlsplit(self.source)
        if not parts.netloc:
            return self.source
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
