"""Which releases of its libraries a backend computes with: another release may round otherwise."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "openvino-bf16": ("openvino",),
    "pytorch": ("torch", "transformers"),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt_rtx"),
}


def library_versions(backend: str) -> list[str]:
    """The machine's architecture, and name and version of each package of the backend that is installed."""
    found = [platform.machine()]
    for name in _PACKAGES.get(backend, ()):
        # Another package of the same library may be there, or it was installed without metadata.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found
