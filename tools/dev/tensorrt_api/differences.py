"""What differs between the supported versions of TensorRT, in the classes that this project touches.

python -m qwen3vl_edge.tools.dev.tensorrt_api.differences tests/support/tensorrt_api > docs/reports/tensorrt-versions.md
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER = """# What differs between versions of TensorRT

Written by `python -m qwen3vl_edge.tools.dev.tensorrt_api.differences tests/support/tensorrt_api`; not for editing.

Members of the Python classes that building and running an engine touch, where some version lacks them. Taken from
the bindings themselves (`tools/dev/tensorrt_api/make_stubs.py`). 10.3 is JetPack 6's, 10.13 JetPack 7's. This project
calls only what every version has, but for `edge_runtime/backends/rtx_context.py`, which is TensorRT-RTX's alone;
`tests/export/test_tensorrt_api.py` holds every call against every version.

"""
# Layers, ops and dtypes: the ONNX parser decides on those.
LEFT_OUT = ("INetworkDefinition", "LayerType", "DataType")


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


def page(folder: Path) -> str:
    """The page: one line per public member that some versions lack."""
    versions = sorted((path for path in folder.iterdir() if path.is_dir()), key=_order)
    held = {path.name.replace("-", " "): members(path / "tensorrt.pyi") for path in versions}
    lines = ["| | " + " | ".join(held) + " |", "|---|" + "---|" * len(held)]
    for name in sorted(set().union(*held.values())):
        kind, member = name.split(".", 1)
        if member.startswith("_") or member in ("name", "value") or kind in LEFT_OUT:
            continue
        marks = ["yes" if name in found else "–" for found in held.values()]
        if "–" in marks:
            lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    return HEADER + "\n".join(lines) + "\n"


def _order(path: Path) -> tuple[str, list[int]]:
    library, version = path.name.rsplit("-", 1)
    return library, [int(part) for part in version.split(".")]


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))
