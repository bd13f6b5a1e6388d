"""Every call on TensorRT is held against the Python bindings of each version that is supported.

`tests/support/tensorrt_api/<version>/tensorrt.pyi` has the classes and signatures of that version's own bindings
(tools/dev/tensorrt_api/make_stubs.py). A name, argument or attribute that a version lacks is a type error here.
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda.bindings import driver, runtime

from qwen3vl_edge.tools.dev.tensorrt_api import differences
from tests.support.paths import ROOT

STUBS = ROOT / "tests" / "support" / "tensorrt_api"
VERSIONS = sorted(path.name for path in STUBS.iterdir() if path.is_dir())
LIBRARY = "contract/machine/tensorrt_library.py"
SHARED = [
    LIBRARY,
    "export/tensorrt/build_job.py",
    "export/tensorrt/build_progress.py",
    "export/tensorrt/network.py",
    "export/tensorrt/build_plan.py",
    "edge_runtime/backends/plan_loader.py",
    "edge_runtime/backends/tensorrt.py",
]
RTX_ONLY = "edge_runtime/backends/rtx_context.py"
# What polygraphy's CreateConfig and EngineBytesFromNetwork set for us, by attribute.
THROUGH_POLYGRAPHY = {
    "IBuilderConfig": [
        "add_optimization_profile",
        "builder_optimization_level",
        "create_timing_cache",
        "get_timing_cache",
        "profiling_verbosity",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    ],
    "BuilderFlag": ["STRIP_PLAN", "TF32"],
    "Builder": ["build_serialized_network", "create_builder_config", "create_optimization_profile"],
    "ITimingCache": ["combine", "serialize"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of everything but TensorRT, for all versions."""
    return tmp_path_factory.mktemp("mypy")


def check_types(version: str, files: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    options = ["--strict", "--allow-untyped-calls", "--ignore-missing-imports", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", str(cache), *options]
    environment = dict(os.environ, MYPYPATH=str(STUBS / version))
    return subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_versions_that_matter_are_here() -> None:
    """10.3 is JetPack 6's, 10.13 JetPack 7's; the last of 10 and of 11; and TensorRT-RTX."""
    releases = {name.rsplit("-", 1)[0] + " " + ".".join(name.rsplit("-", 1)[1].split(".")[:2]) for name in VERSIONS}
    assert {"tensorrt 10.3", "tensorrt 10.13", "tensorrt 10.16", "tensorrt 11.4", "tensorrt_rtx 1.7"} <= releases


def test_every_file_that_uses_tensorrt_is_checked() -> None:
    users, importers = set(), set()
    for file in (file for part in ("contract", "export", "edge_runtime") for file in (ROOT / part).rglob("*.py")):
        name = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and "trt" in {alias.name for alias in node.names}:
                users.add(name)
            if isinstance(node, ast.Import) and {alias.name for alias in node.names} & {"tensorrt", "tensorrt_rtx"}:
                importers.add(name)
    assert importers == {LIBRARY}  # others get it from there, and no other way
    assert users | importers == {*SHARED, RTX_ONLY}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_is_in_the_bindings_of(version: str, cache: Path) -> None:
    files = [*SHARED, RTX_ONLY] if version.startswith("tensorrt_rtx") else SHARED
    done = check_types(version, files, cache)
    assert done.returncode == 0, done.stdout


def test_a_call_that_a_version_lacks_is_found(cache: Path) -> None:
    """The same check on calls that only TensorRT-RTX has: without it the tests above would prove nothing."""
    done = check_types("tensorrt-10.3.0", [RTX_ONLY], cache)
    assert done.returncode == 1
    assert '"ICudaEngine" has no attribute "create_runtime_config"' in done.stdout
    assert 'Module has no attribute "CudaGraphStrategy"' in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_what_polygraphy_calls_is_in_the_bindings_of(version: str) -> None:
    tree = ast.parse((STUBS / version / "tensorrt.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name, attributes in THROUGH_POLYGRAPHY.items():
        held = {getattr(item, "name", None) for item in classes[name].body}
        held |= {item.target.id for item in classes[name].body if isinstance(item, ast.AnnAssign)}  # type: ignore[union-attr]
        assert set(attributes) <= held, name


def test_the_page_of_differences_is_current() -> None:
    assert (ROOT / "docs" / "reports" / "tensorrt-versions.md").read_text(encoding="utf-8") == differences.page(STUBS)


def test_the_stub_of_tensorrt_rtx_is_that_of_the_library_installed() -> None:
    library = importlib.import_module("tensorrt_rtx")
    assert f"tensorrt_rtx-{library.__version__}" in VERSIONS


@pytest.mark.parametrize(
    ("file", "name", "module"),
    [("edge_runtime/backends/cuda.py", "cudart", runtime), ("contract/machine/gpu.py", "driver", driver)],
)
def test_every_cuda_call_is_in_cuda_bindings(file: str, name: str, module: object) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }
    assert used
    assert not {attribute for attribute in used if not hasattr(module, attribute)}
