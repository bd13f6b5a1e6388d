"""`qwen3vl-edge edge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(config: Path | None, options: dict[str, Any]) -> None:
    """Serve until stopped.

    Raises:
        ContractError: settings, bundle or address that cannot be used.
    """
    from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig, load_config
    from qwen3vl_edge.edge_runtime.daemon.main import serve

    def read() -> DaemonConfig:
        return load_config(config, options)

    serve(read(), read)
