"""Every error message of the package, read from its source; `python -m tests.error_messages` rewrites the list.

A message is what a `ContractError` or one of its subclasses is constructed with. An f-string's placeholders stand as
`{…}`; so does a message that the source computes elsewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

LIST = ROOT / "tests" / "error_messages.txt"
PARTS = ("contract", "export", "edge_runtime", "server", "calibration", "tools")
NOT_SHIPPED = ROOT / "tools" / "dev"
PLACEHOLDER = "{…}"


@dataclass(frozen=True)
class ErrorClass:
    """A class of errors as its source declares it.

    Attributes:
        base: its base's name.
        code: its `code`, None where it has its base's.
        parameters: of its own `__init__` without `self`, None where it has its base's.
    """

    base: str
    code: str | None
    parameters: tuple[str, ...] | None


@dataclass(frozen=True)
class Message:
    """One construction of an error.

    Attributes:
        file: relative to the repository.
        field: as in `ContractError`, empty where there is none.
        text: the message.
    """

    file: str
    error: str
    code: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.error} ({', '.join(filter(None, (self.code, self.field)))}): {self.text}"


def error_messages() -> list[Message]:
    """All of them, by part and file, in the order of the source; one that a file repeats is listed once."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for part in PARTS for path in _sources(ROOT / part)}
    classes = _error_classes(trees.values())
    return list(dict.fromkeys(message for path, tree in trees.items() for message in _messages(path, tree, classes)))


def listing(messages: list[Message]) -> str:
    """The list's text: a file's name, and below it a line a message."""
    lines = [
        "All error messages of the package: class (code, field): message.",
        f"{PLACEHOLDER} stands for a value. Written by `python -m tests.error_messages`; a test holds it up to date.",
    ]
    file = ""
    for message in messages:
        if message.file != file:
            lines += ["", message.file]
            file = message.file
        lines.append(f"  {message}")
    return "\n".join(lines) + "\n"


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if NOT_SHIPPED not in path.parents)


def _error_classes(trees: Iterable[ast.Module]) -> dict[str, ErrorClass]:
    """`ContractError` and what derives from it, by name."""
    declared = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def derives(name: str) -> bool:
        return name == "ContractError" or (name in declared and any(map(derives, _bases(declared[name]))))

    return {name: _error_class(node) for name, node in declared.items() if derives(name)}


def _bases(node: ast.ClassDef) -> list[str]:
    return [base.id for base in node.bases if isinstance(base, ast.Name)]


def _error_class(node: ast.ClassDef) -> ErrorClass:
    code, parameters = None, None
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and target.id == "code":
            code = None if item.value is None else _text(item.value)
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            parameters = tuple(argument.arg for argument in item.args.args[1:])
            code = next(filter(None, map(_http_code, ast.walk(item))), code)
    return ErrorClass((_bases(node) or [""])[0], code, parameters)


def _http_code(node: ast.AST) -> str | None:
    """The code in `super().__init__(status, code, message)`."""
    match node:
        case ast.Call(ast.Attribute(attr="__init__"), [ast.Constant(int()), ast.Constant(str() as code), *_]):
            return code
    return None


def _messages(path: Path, tree: ast.Module, classes: dict[str, ErrorClass]) -> Iterator[Message]:
    file = path.relative_to(ROOT).as_posix()
    owner = {
        call: node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in classes
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        # Within an error class `super().__init__(message, …)` sets the message of every instance.
        own = call in owner and isinstance(call.func, ast.Attribute) and call.func.attr == "__init__"
        error = owner[call] if own else getattr(call.func, "id", getattr(call.func, "attr", ""))
        signature = classes[error].base if own else error
        arguments = _arguments(call, signature, classes) if signature in classes else {}
        if "message" not in arguments or (own and isinstance(arguments["message"], ast.Name)):
            continue  # no message, or the caller's
        code = _text(arguments["code"]) if "code" in arguments else _code(error, classes)
        field = _text(arguments["field"]) if "field" in arguments else ""
        for text in _alternatives(arguments["message"]):
            yield Message(file, error, code, field, text)


def _arguments(call: ast.Call, name: str, classes: dict[str, ErrorClass]) -> dict[str, ast.expr]:
    """The call's arguments by name."""
    while (names := classes[name].parameters) is None:
        name = classes[name].base
    by_name = {item.arg: item.value for item in call.keywords if item.arg is not None}
    return {**dict(zip(names, call.args, strict=False)), **by_name}


def _code(name: str, classes: dict[str, ErrorClass]) -> str:
    while name in classes and classes[name].code is None:
        name = classes[name].base
    return (classes[name].code or "") if name in classes else ""


def _alternatives(node: ast.expr) -> list[str]:
    """The texts that the expression may have: two where it chooses between two."""
    if isinstance(node, ast.IfExp):
        return [*_alternatives(node.body), *_alternatives(node.orelse)]
    return [_text(node)]


def _text(node: ast.expr) -> str:
    """The expression's text on one line, with placeholders."""
    if isinstance(node, ast.Constant):
        return "" if node.value is None else str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return PLACEHOLDER


if __name__ == "__main__":
    LIST.write_text(listing(error_messages()), encoding="utf-8")
