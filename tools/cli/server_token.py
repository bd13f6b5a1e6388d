"""`qwen3vl-edge server-token`: tokens for clients of a server."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer


def server_token(
    name: Annotated[str, typer.Argument(help="The client's name; its stored embeddings and answers belong to it.")],
    file: Annotated[Path, typer.Option("--file", help="The server's tokens_file; made if missing.")],
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until it expires; never by default.")
    ] = None,
) -> None:
    """Make a token for a client of `server` and print it, once: the file keeps only its hash."""
    from qwen3vl_edge.server.http.tokens import add_token

    expires = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    token = add_token(file, name, expires)
    sys.stderr.write(f"{name} added to {file}. This is its token; it is shown once and stored nowhere:\n")
    sys.stdout.write(f"{token}\n")  # alone on stdout, for a script to catch
