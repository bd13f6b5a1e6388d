"""`qwen3vl-edge edge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(config: Path | None, options: dict[str, Any]) -> None:
    """Serve until stopped.

    Raises:
        ContractError: settings, bundle or address that cannot be used.
    """
    from edge_runtime.daemon.config import load_config
    from edge_runtime.daemon.main import serve

    serve(load_config(config, options))
