"""polygraphy's builder for TensorRT: profiles, configuration, timing cache. It supports one library per process."""

from __future__ import annotations

import importlib
from typing import Any

from qwen3vl_edge.contract.errors import EngineError

_chosen: str | None = None  # polygraphy reads its setting once, when its backend is imported


def use_polygraphy(library: str) -> Any:
    """`polygraphy.backend.trt`, on `tensorrt` or on `tensorrt_rtx`.

    Raises:
        EngineError: not installed, or this process has used it with the other library already.
    """
    global _chosen
    try:
        config = importlib.import_module("polygraphy.config")
        logger = importlib.import_module("polygraphy.logger").G_LOGGER
    except ImportError:
        raise EngineError(
            "building engines needs polygraphy",
            field="--target",
            remedy="Install it with: pip install 'qwen3vl-edge[build]'",
        ) from None
    if _chosen not in (None, library):
        raise EngineError(
            f"this process has already built with {_chosen}",
            field="--target",
            got=library,
            remedy="Build for the other library in a process of its own.",
        )
    setattr(config, "USE_TENSORRT_RTX", library == "tensorrt_rtx")  # noqa: B010 (not in its type hints)
    logger.module_severity = logger.CRITICAL + 1  # its messages go to stdout, which is for --json only
    backend = importlib.import_module("polygraphy.backend.trt")
    _chosen = library
    return backend


def create_config_rtx() -> Any:
    """`CreateConfigRTX`, to be called after `use_polygraphy("tensorrt_rtx")`."""
    return importlib.import_module("polygraphy.backend.tensorrt_rtx").CreateConfigRTX


def polygraphy_error() -> type[Exception]:
    """The exception that polygraphy raises for every failure."""
    error: type[Exception] = importlib.import_module("polygraphy.exception").PolygraphyException
    return error
