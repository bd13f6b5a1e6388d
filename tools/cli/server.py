"""`qwen3vl-edge server`: the language model on a server."""

from __future__ import annotations

from typing import Any

from qwen3vl_edge.server.options import ServerOptions, load_options
from qwen3vl_edge.tools.cli.options import ConfigOption, with_settings


@with_settings(ServerOptions)
def server(config: ConfigOption = None, **settings: Any) -> None:
    """Serve the language model alone: embeddings in, answers out."""
    from qwen3vl_edge.server.main import serve

    serve(load_options(config, {name: value for name, value in settings.items() if value not in (None, [])}))
