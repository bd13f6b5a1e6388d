"""The table of `docs/guides/server/security.md`: what each attack may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "server" / "security.md"
_ROW = re.compile(
    r"^\| `(?P<name>[a-z0-9-]+)` \|(?P<what>[^|]*)\|(?P<by>[^|]*)\|(?P<answer>[^|]*)\| *(?P<mib>\d+) *\|$", re.M
)


@dataclass(frozen=True)
class Bound:
    """A row.

    Attributes:
        name: of the attack.
        statuses: what its requests may be answered with; 0 for a closed connection.
        mib: memory above the steady state that one of its requests may take.
    """

    name: str
    statuses: frozenset[int]
    mib: int


def read_bounds(path: Path = TABLE) -> dict[str, Bound]:
    """All rows by name, in order."""
    rows = _ROW.finditer(path.read_text(encoding="utf-8"))
    return {row["name"]: Bound(row["name"], _statuses(row["answer"]), int(row["mib"])) for row in rows}


def _statuses(text: str) -> frozenset[int]:
    return frozenset(0 if word == "closed" else int(word) for word in re.findall(r"\d{3}|closed", text))
