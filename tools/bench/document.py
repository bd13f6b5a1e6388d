"""What a bench leaves: JSON, with the machine that it ran on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract import atomic
from tools.bench.environment import environment


def write_document(out: Path, document: dict[str, Any]) -> None:
    """Write it, its environment first, all at once or not at all."""
    text = json.dumps({"environment": environment(), **document}, indent=1) + "\n"
    atomic.write_bytes(out, text.encode())
