"""What differs between the supported versions of TensorRT, in the classes that this project touches.

python -m tools.tensorrt_api.differences tests/tensorrt_api        # a Markdown table, kept in docs/engines.md
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def members(stub: Path) -> set[str]:
    """`Class.member` of every class in a stub, enum values and attributes included."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return {f"{node.name}.{name}" for node in tree.body if isinstance(node, ast.ClassDef) for name in _names(node)}


def _names(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            yield item.name
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id


def table(folder: Path) -> str:
    """One line per member that some versions lack; public members alone, and no layers of the network."""
    versions = sorted((path for path in folder.iterdir() if path.is_dir()), key=_order)
    held = {path.name: members(path / "tensorrt.pyi") for path in versions}
    every = set().union(*held.values())
    lines = ["| | " + " | ".join(held) + " |", "|---|" + "---|" * len(held)]
    for name in sorted(every):
        kind, member = name.split(".", 1)
        if member.startswith("_") or kind in ("INetworkDefinition", "LayerType", "DataType"):
            continue
        marks = ["yes" if name in found else "–" for found in held.values()]
        if "–" in marks:
            lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


def _order(path: Path) -> tuple[str, list[int]]:
    library, version = path.name.rsplit("-", 1)
    return library, [int(part) for part in version.split(".")]


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1])))
