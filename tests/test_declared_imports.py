"""Every third-party library that a part imports is declared in the extras with which that part is installed."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.fresh_environment import declared_names
from tests.support.paths import ROOT
from tests.test_parts_are_apart import MAY_IMPORT, PACKAGE, files_of, imports_of, modules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = "qwen3vl-edge"
# Modules of distributions that not every environment has, and of those that ship in several variants.
DISTRIBUTIONS = {
    "cuda": "cuda-bindings",
    "decord": "decord",
    "grpc": "grpcio",
    "msgpack": "msgpack",
    "onnxruntime": "onnxruntime-gpu",
    "pillow_heif": "pillow-heif",
    "tensorrt": "tensorrt",
    "tomli": "tomli",
    "torchcodec": "torchcodec",
    "vllm": "vllm",
}
NAMESPACES = {
    "google.protobuf": "protobuf",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-exporter-otlp-proto-http",  # which requires its distribution
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.trace": "opentelemetry-api",
}
# The part to the extras with which it is installed.
EXTRAS = {
    "export": {"export"},
    "edge_runtime": {"edge"},
    "server": {"server"},
    "calibration": {"export", "edge"},
    "tools": {"export", "edge", "server"},
}
# What is imported only where it is chosen, and the extra that brings it.
CHOSEN = {
    "cuda-bindings": "tensorrt",
    "markupsafe": "report",
    "matplotlib": "report",
    "opentelemetry-api": "trace",
    "opentelemetry-exporter-otlp-proto-http": "trace",
    "opentelemetry-sdk": "trace",
    "pillow-heif": "heic",
    "openvino": "openvino",
    "polygraphy": "build",
    "tensorrt": "tensorrt",
    "vllm": "vllm",
}
VLLM_BRINGS = {"huggingface-hub", "torch", "torchvision", "transformers"}  # in the versions that it pins


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@cache
def requirements() -> tuple[Requirement, ...]:
    """As a wheel's metadata lists them."""
    lines = list(project()["dependencies"])
    for extra, items in project()["optional-dependencies"].items():
        for item in items:
            name, _, marker = item.partition(";")
            condition = f"({marker}) and extra == '{extra}'" if marker else f"extra == '{extra}'"
            lines.append(f"{name}; {condition}")
    return tuple(Requirement(line) for line in lines)


def declared(extras: set[str]) -> set[str]:
    """Canonical names that are required with these extras: here, on the oldest Python, or on one of the machines."""
    oldest = project()["requires-python"].removeprefix(">=")
    elsewhere: tuple[dict[str, str], ...] = (
        {},
        {"python_version": oldest},
        {"platform_machine": "aarch64"},
        {"platform_machine": "x86_64"},
    )
    return set().union(
        *(declared_names(requirements(), PROJECT, extras | {""}, **environment) for environment in elsewhere)
    )


def libraries(names: set[str]) -> set[str]:
    """Canonical names of the distributions that these imports need."""
    found = set()
    installed = packages_distributions()
    for name in names:
        top, two = name.split(".")[0], ".".join(name.split(".")[:2])
        if top in sys.stdlib_module_names or top in (PACKAGE, "tests") or top.startswith("test_"):
            continue
        if two in ("google", "opentelemetry"):
            continue  # `from opentelemetry import trace` is listed as opentelemetry.trace too
        distribution = NAMESPACES.get(two) or DISTRIBUTIONS.get(top) or next(iter(installed.get(top, [top])))
        found.add(canonicalize_name(distribution))
    return found


def imported_by(part: str, within: set[str]) -> set[str]:
    """Names that a part's files import, and those that they import from other parts, as far as they lead.

    Args:
        within: the parts whose files are followed.
    """
    known = modules()
    waiting = [name for name in known if name.startswith(f"{PACKAGE}.{part}")]
    seen: set[str] = set()
    names: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen or module.startswith(f"{PACKAGE}.tools.dev"):
            continue
        seen.add(module)
        imports = imports_of(known[module])
        names |= imports
        waiting += [name for name in imports & known.keys() if name.removeprefix(f"{PACKAGE}.").split(".")[0] in within]
    return names


@pytest.mark.parametrize("part", EXTRAS)
def test_what_a_part_imports_is_declared_in_its_extras(part: str) -> None:
    needed = libraries(imported_by(part, MAY_IMPORT[part] | {part}))
    assert needed - declared(EXTRAS[part]) - CHOSEN.keys() == set()


def test_what_is_imported_where_it_is_chosen_is_declared_in_its_extra() -> None:
    for library, extra in CHOSEN.items():
        assert library in declared({extra})


def test_the_server_on_vllm_has_what_it_imports() -> None:
    needed = libraries(imported_by("server", {"contract", "server"}))
    assert needed - declared({"vllm"}) - CHOSEN.keys() == VLLM_BRINGS


def test_what_the_workshop_and_the_tests_import_is_declared() -> None:
    names = {name for folder in ("tools/dev", "tests") for file in files_of(folder) for name in imports_of(file)}
    # flash-attn is built against one torch and one CUDA: whoever has it made it, and its test is skipped elsewhere.
    assert libraries(names) - declared(set(project()["optional-dependencies"])) == {"flash-attn"}


def test_the_command_line_alone_needs_no_extra() -> None:
    files = [path for path in files_of("tools/cli") if path.name in ("main.py", "__init__.py")]
    assert libraries({name for file in files for name in imports_of(file)}) <= declared(set())


def test_constraints_name_a_version_of_each_package_that_is_installed_to_run_the_tests() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    versions = {}
    for line in lines:
        found = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
        assert found is not None, line
        versions[canonicalize_name(found[1])] = Version(found[2])
    for extra in ("export", "edge", "server", "dev"):
        for requirement in requirements():
            name = canonicalize_name(requirement.name)
            if name in versions and requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                assert versions[name] in requirement.specifier, requirement
    assert declared_names(requirements(), PROJECT, {"", "export", "edge", "server", "dev"}) <= versions.keys()
