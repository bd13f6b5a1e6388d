"""The layers: who imports whom, no circles, no bare import of a part, and what is heavy stays out until used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = "qwen3vl_edge"
# Each part and the parts that it may import, itself apart.
MAY_IMPORT: dict[str, set[str]] = {
    "contract": set(),
    "export": {"contract"},
    "edge_runtime": {"contract"},
    "server": {"contract"},
    "calibration": {"contract", "export", "edge_runtime"},
    "tools": {"contract", "export", "edge_runtime", "server", "calibration"},
}
# Third-party modules that no file below a folder may import, not even when a function runs.
FORBIDDEN_LIBRARIES = {
    "contract": {"torch", "transformers", "onnx", "onnxruntime"},
    "export": {"fastapi", "starlette", "uvicorn", "httpx", "pydantic"},
    "calibration": {"fastapi", "starlette", "uvicorn", "httpx", "pydantic", "transformers"},
    "server/engines": {"fastapi", "starlette", "uvicorn", "httpx", "pydantic"},
    "edge_runtime/encoder": {"fastapi", "starlette", "uvicorn", "httpx", "pydantic"},
    "edge_runtime/backends": {"fastapi", "starlette", "uvicorn", "httpx", "pydantic"},
}
# Exceptions, in functions alone. export, edge_runtime and server load the vision encoder out of a checkpoint and may
# not import each other, so its one loader lies below all three; contract loads without either library.
IN_FUNCTIONS_ONLY = {
    "contract/bundle/torch_encoder.py": {"torch", "transformers"},
    "contract/pixels/from_checkpoint.py": {"transformers"},
}


def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Full names of the modules that a file imports anywhere in it; names taken from a package as its modules."""
    return _imports(file, ast.walk(_parse(file)))


def imports_on_loading(file: Path) -> frozenset[str]:
    """Those outside of functions."""
    return _imports(file, _walk_outside_functions(_parse(file)))


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _walk_outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _walk_outside_functions(child)


def _imports(file: Path, nodes: Iterable[ast.AST]) -> frozenset[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {PACKAGE: ROOT / PACKAGE / "__init__.py", f"{PACKAGE}.__main__": ROOT / PACKAGE / "__main__.py"}
    for part in MAY_IMPORT:
        for file in files_of(part):
            name = ".".join((PACKAGE, *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
            found[name] = file
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts_import_only_what_lies_below_them(part: str) -> None:
    files = files_of(part)
    assert files
    for file in files:
        parts = {name.split(".")[1] for name in imports_of(file) if name.startswith(f"{PACKAGE}.")}
        assert parts <= MAY_IMPORT[part] | {part}, file


def test_no_part_is_imported_by_its_bare_name() -> None:
    for file in [path for folder in (*MAY_IMPORT, "tests", PACKAGE) for path in files_of(folder)]:
        assert not {name.split(".")[0] for name in imports_of(file)} & set(MAY_IMPORT), file


def test_what_is_shipped_does_not_import_the_workshop() -> None:
    for file in [path for part in MAY_IMPORT for path in files_of(part)]:
        if not file.is_relative_to(ROOT / "tools" / "dev"):
            assert not {name for name in imports_of(file) if name.startswith(f"{PACKAGE}.tools.dev")}, file


@pytest.mark.parametrize("folder", FORBIDDEN_LIBRARIES)
def test_libraries_stay_out_of(folder: str) -> None:
    for file in files_of(folder):
        forbidden = FORBIDDEN_LIBRARIES[folder]
        allowed = IN_FUNCTIONS_ONLY.get(file.relative_to(ROOT).as_posix(), set())
        assert not {name.split(".")[0] for name in imports_of(file)} & (forbidden - allowed), file
        assert not {name.split(".")[0] for name in imports_on_loading(file)} & forbidden, file


def test_an_import_in_a_function_is_told_from_one_on_loading(tmp_path: Path) -> None:
    file = tmp_path / "both.py"
    file.write_text("import a\nif True:\n    import b\nclass C:\n    import c\n    def f(self):\n        import d\n")
    assert imports_of(file) == {"a", "b", "c", "d"}
    assert imports_on_loading(file) == {"a", "b", "c"}


def test_engines_load_no_web_framework() -> None:
    names = [name for name in modules() if name.startswith(f"{PACKAGE}.server.engines.transformers")]
    code = (
        f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
        "web = {'fastapi', 'starlette', 'uvicorn'} & set(sys.modules)\nsys.exit(f'imported {web}' if web else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Strongly connected components of more than one module (Tarjan, SIAM J. Comput. 1 (1972))."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in graph[module]:
            if other not in number:
                yield from visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                yield sorted(component)

    for module in graph:
        if module not in number:
            yield from visit(module)


def test_no_files_import_each_other_in_a_circle() -> None:
    known = modules()
    # A package's __init__ is its face: it hands names on, and is loaded before any of its modules.
    faces = {name for name, file in known.items() if file.name == "__init__.py"}
    graph = {
        name: {other for other in imports_of(file) if other in known and other not in faces and other != name}
        for name, file in known.items()
    }
    assert list(circles(graph)) == []


def test_a_circle_would_be_found() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == [["a", "b", "c"]]


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["server", "--help"], ["ask", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['qwen3vl-edge', *sys.argv[1:]]\n"
        "from qwen3vl_edge.tools.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'fastapi', 'numpy', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
