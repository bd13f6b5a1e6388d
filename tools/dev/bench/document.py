"""What a bench leaves: JSON, with the machine that it ran on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.environment import environment


def write_document(out: Path, document: dict[str, Any]) -> None:
    """Write it, its environment first, all at once or not at all."""
    rewrite_document(out, {"environment": environment(), **document})


def rewrite_document(out: Path, document: dict[str, Any]) -> None:
    """Write one that has its environment."""
    atomic.write_bytes(out, (json.dumps(document, indent=1) + "\n").encode())
