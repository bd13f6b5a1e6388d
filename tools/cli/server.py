"""`qwen3vl-edge server`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run(config: Path | None, options: Mapping[str, Any]) -> None:
    """Serve until stopped."""
    from qwen3vl_edge.server.main import serve
    from qwen3vl_edge.server.options import load_options

    serve(load_options(config, options))
