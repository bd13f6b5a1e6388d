"""`qwen3vl-edge server-token`."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path


def run(name: str, file: Path, days: int | None) -> None:
    """Add a token; it alone goes to stdout, for a script to catch.

    Raises:
        InputError: a bad name, or a file that cannot be used.
    """
    from qwen3vl_edge.server.http.tokens import add_token

    expires = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    token = add_token(file, name, expires)
    sys.stderr.write(f"{name} added to {file}. This is its token; it is shown once and stored nowhere:\n")
    sys.stdout.write(f"{token}\n")
