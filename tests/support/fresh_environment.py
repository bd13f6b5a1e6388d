"""An environment that holds one wheel and the packages it declares, linked from the environment that runs the tests."""

from __future__ import annotations

import email
import importlib.metadata
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# One distribution in place of another that holds the same modules.
INSTEAD = {"onnxruntime": "onnxruntime-gpu"}


def requirements_of_wheel(wheel: Path) -> list[Requirement]:
    """`Requires-Dist` of a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def declared_names(requirements: Sequence[Requirement], project: str, extras: set[str], **marker: str) -> set[str]:
    """Canonical names that a project requires directly, each where one of the extras asks for it.

    Args:
        requirements: of the project.
        project: its name: `project[extra]` among its own requirements is followed.
        extras: "" stands for none.
        marker: values of environment markers (`python_version`) in place of this platform's.
    """
    names: set[str] = set()
    for requirement in requirements:
        values = [{**marker, "extra": extra} for extra in extras]
        if requirement.marker is not None and not any(map(requirement.marker.evaluate, values)):
            continue
        if canonicalize_name(requirement.name) == project:
            names |= declared_names(requirements, project, requirement.extras, **marker)
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def make_environment(folder: Path, wheel: Path, project: str, extra: str) -> Path:
    """Make a virtual environment, link what `project[extra]` requires into it, install the wheel; returns its `bin`.

    No path of the running environment is on its `sys.path`, so that neither an editable install nor an undeclared
    package can be imported.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for name in _closure(declared_names(requirements_of_wheel(wheel), project, {extra})):
        _link_distribution(importlib.metadata.distribution(name), site)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "bin"


def _closure(names: set[str]) -> set[str]:
    """All that these distributions need on this platform, themselves included."""
    found: set[str] = set()
    waiting = [(name, frozenset[str]()) for name in names]
    while waiting:
        wanted, extras = waiting.pop()
        name = wanted if _is_installed(wanted) else INSTEAD[wanted]
        if name in found and not extras:
            continue
        found.add(name)
        waiting += _required_by(name, extras)
    return found


def _required_by(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _link_distribution(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts:  # a script of the running environment
            continue
        link = site / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(str(distribution.locate_file(file))))
