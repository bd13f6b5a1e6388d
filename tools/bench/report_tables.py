"""What every section of the benchmarks page is made of."""

from __future__ import annotations

from typing import Any


def table(names: list[str], rows: list[list[str]], text: int) -> str:
    """Markdown; the first `text` columns are words, the others figures."""
    rule = ["---" if index < text else "---:" for index in range(len(names))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (names, rule, *rows))


def told_environment(document: dict[str, Any]) -> str:
    found = document["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpu = found["gpu"] or "no GPU"
    return (
        f"\n`{found['command']}` on {found['cores']} cores of {found['cpu']}, {gpu}, {found['system']}, "
        f"Python {found['python']}, {versions}.\n"
    )
