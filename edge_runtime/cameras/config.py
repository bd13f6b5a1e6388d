"""The settings of one camera."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import REQUIRED, check_settings, setting
from qwen3vl_edge.contract.formats.shown_url import shown_url


@dataclass(frozen=True)
class CameraConfig:
    """One `[cameras.NAME]` table of the settings file; `name` is the table's name, each other field a setting.

    Raises:
        InputError: a value out of range.
    """

    name: str
    source: str = setting(
        REQUIRED, "What PyAV opens (rtsp://, http://, a file, …), `/dev/video0`, or `gst:` and a GStreamer pipeline."
    )
    fps: float = setting(2.0, "Frames taken per second.", within=(0.01, 60))
    seconds: float = setting(8.0, "Length of the window of frames, in seconds.", within=(0.1, 3600))
    size: str = setting(
        "",
        "Size in pixels at which frames are encoded; empty for the size that the bucket choice gives.",
        pattern=r"(\d+x\d+)?",
        form="HEIGHTxWIDTH",
    )
    encode: str = setting(
        "on-demand",
        "on-demand encodes at a request the frames that are not encoded yet; always encodes frames as they come.",
        choices=("on-demand", "always"),
    )
    loop: bool = setting(True, "A file begins again at its end.")
    options: Mapping[str, str] = setting({}, "FFmpeg's options for the source, such as rtsp_transport.", form="a table")

    def __post_init__(self) -> None:
        where = f"cameras.{self.name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise InputError("bad camera name", field=where[:80], expected="letters, digits, - and _")
        if not self.source or self.source == "gst:":
            raise InputError("camera without a source", field=f"{where}.source")
        check_settings(self, f"{where}.")

    @property
    def shown_source(self) -> str:
        """The source without what may be a secret: user, password and query."""
        if self.source.startswith("gst:"):
            return "gst:…"
        return shown_url(self.source).removesuffix("?…")
