"""What benches share: the order of alternating rounds, and the JSON document that names the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.environment import environment

T = TypeVar("T")


def write_document(out: Path, document: dict[str, Any]) -> None:
    """Write it, its environment first, all at once or not at all."""
    rewrite_document(out, {"environment": environment(), **document})


def rewrite_document(out: Path, document: dict[str, Any]) -> None:
    """Write one that has its environment."""
    atomic.write_bytes(out, (json.dumps(document, indent=1) + "\n").encode())


def rotated(items: Sequence[T], number: int) -> list[T]:
    """All of them, each round beginning with another: none is always first, or always after the same one."""
    start = number % len(items)
    return [*items[start:], *items[:start]]
