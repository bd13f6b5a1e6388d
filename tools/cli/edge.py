"""`qwen3vl-edge edge`: the daemon on the device."""

from __future__ import annotations

import sys
from typing import Any

import typer

from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig, load_config
from qwen3vl_edge.tools.cli.options import ConfigOption, with_settings


@with_settings(DaemonConfig)
def edge(context: typer.Context, config: ConfigOption = None, **settings: Any) -> None:
    """The daemon on the device: a local OpenAI-compatible API; pictures are encoded here, only embeddings leave."""
    if context.invoked_subcommand is not None:
        return
    if settings["bundle"] is None and config is None:
        sys.stdout.write(context.get_help() + "\n")
        return
    from qwen3vl_edge.edge_runtime.daemon.main import serve

    options = {name: value for name, value in settings.items() if value not in (None, [])}

    def read() -> DaemonConfig:
        return load_config(config, options)

    serve(read(), read)
