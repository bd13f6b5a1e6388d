"""What every section of the benchmarks page is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""Heading to what stands below it for a row of the JSON."""


def section(document: Row, heading: str, text: str, columns: Columns, words: int, after: str = "") -> str:
    """A heading, what was measured, the document's rows as a table, and where.

    Args:
        words: how many of the first columns are words; the others are figures.
        after: what stands below the table.
    """
    return f"## {heading}\n\n{text}\n\n" + table(columns, document["rows"], words) + after + environment_line(document)


def table(columns: Columns, rows: Iterable[Row], words: int) -> str:
    """Markdown."""
    return plain_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows], words)


def plain_table(names: list[str], rows: list[list[str]], words: int) -> str:
    """Markdown, of cells that are there already."""
    rule = ["---" if index < words else "---:" for index in range(len(names))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (names, rule, *rows))


def plain(key: str) -> Callable[[Row], str]:
    """The value as it is."""
    return lambda row: str(row[key])


def figure(key: str, form: str, factor: float = 1) -> Callable[[Row], str]:
    """The value times `factor`, in a format as `,.1f`; nothing where it is None or missing."""
    return lambda row: "" if row.get(key) is None else format(row[key] * factor, form)


def spread(key: str, form: str, factor: float = 1) -> Callable[[Row], str]:
    """From the least to the most."""
    return lambda row: " to ".join(format(value * factor, form) for value in row[key])


def noted(document: Row) -> str:
    """The document's own note, where it has one."""
    return f"\n{document['note']}\n" if document.get("note") else ""


def environment_line(document: Row) -> str:
    """Command, machine and versions."""
    environment = document["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    gpu = environment["gpu"] or "no GPU"
    return (
        f"\n`{environment['command']}` on {environment['cores']} cores of {environment['cpu']}, {gpu}, "
        f"{environment['system']}, Python {environment['python']}, {versions}.\n"
    )
