"""`qwen3vl-edge server`."""

from __future__ import annotations

from typing import Any


def run(**options: Any) -> None:
    """Serve until stopped."""
    from server.main import serve
    from server.options import ServerOptions

    serve(ServerOptions(**options))
