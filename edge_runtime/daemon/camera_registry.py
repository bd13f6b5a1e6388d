"""The daemon's cameras by name; resolves references such as `camera:front?seconds=4` to a clip or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.cameras.camera import Camera, Submit
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.edge import Edge

SCHEME = "camera:"


class CameraNotFoundError(InputError):
    """No camera of that name."""

    status = 404
    code = "camera_not_found"


class CameraRegistry:
    """All cameras of one daemon; `close` stops their threads.

    Raises:
        InputError, BucketError: the encoder cannot serve one.
    """

    def __init__(self, configs: Sequence[CameraConfig], edge: Edge, submit: Submit) -> None:
        self._cameras = {config.name: Camera(config, edge, submit) for config in configs}

    def start(self) -> None:
        for camera in self._cameras.values():
            camera.start()

    def close(self) -> None:
        """Stop all, then wait until every source is closed; their last frames stay readable."""
        for camera in self._cameras.values():
            camera.stop()
        for camera in self._cameras.values():
            camera.close()

    def states(self) -> list[dict[str, Any]]:
        return [camera.state() for camera in self._cameras.values()]

    def part(self, url: str, kind: str) -> dict[str, Any]:
        """The reference as a message part in Qwen's format: the window as a clip, or the latest frame as an image.

        Raises:
            CameraNotFoundError, CameraNotReadyError, InputError: no such camera, no frames yet, a bad query.
        """
        parts = urlsplit(url)
        camera = self._cameras.get(parts.path)
        if camera is None:
            names = ", ".join(self._cameras) or "none"
            raise CameraNotFoundError("no such camera", field=f"{kind}_url", expected=names, got=parts.path[:80])
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if kind == "image" and not query:
            return {"type": "image", "image": camera.image()}
        try:
            seconds = float(query.pop("seconds")) if "seconds" in query else None
            if kind == "image" or query or not 0 < (seconds or 1) <= camera.config.seconds:
                raise ValueError
        except ValueError:
            raise InputError(
                "bad camera URL",
                field=f"{kind}_url",
                expected=f"camera:{parts.path}, for clips also ?seconds= up to {camera.config.seconds:g}",
                got=url[:80],
            ) from None
        return {"type": "video", "video": camera.clip(seconds)}
