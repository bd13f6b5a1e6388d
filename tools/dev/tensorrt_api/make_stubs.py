"""Type stubs of TensorRT's Python bindings, without TensorRT: what each version's API has, as the bindings say.

python -m qwen3vl_edge.tools.dev.tensorrt_api.make_stubs
    --out tests/support/tensorrt_api 10.3.0 10.7.0 10.13.3.9 10.16.1.11 11.4.0.106 rtx

A version's bindings are a wheel of 1 MB on PyPI; what they link to (libnvinfer and its parser) is not. They load
all the same once libraries of those names exist, since creating the first object is the first call into them.
So: download the wheel, compile empty libraries, read every class and signature with pybind11-stubgen, and drop
the documentation. "rtx" is the tensorrt_rtx that is installed here. Needs a C compiler and pybind11-stubgen.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# The C functions through which the bindings enter TensorRT.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getInferLibVersion",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
RTX = "rtx"
# What export/ and edge_runtime/ touch, directly or through polygraphy; the rest of the API is left out.
KEPT = frozenset(
    [
        "Builder",
        "BuilderFlag",
        "ComputeCapability",
        "CudaGraphStrategy",
        "DataType",
        "Dims",
        "EngineInspector",
        "EngineValidity",
        "ExecutionContextAllocationStrategy",
        "IBuilderConfig",
        "ICudaEngine",
        "IExecutionContext",
        "IHostMemory",
        "ILayer",
        "ILogger",
        "INetworkDefinition",
        "IOptimizationProfile",
        "IProgressMonitor",
        "IRuntimeCache",
        "IRuntimeConfig",
        "ITensor",
        "ITimingCache",
        "LayerInformationFormat",
        "LayerType",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "OnnxParser",
        "OnnxParserRefitter",
        "ParserError",
        "ProfilingVerbosity",
        "Refitter",
        "Runtime",
        "nptype",
    ]
)


def download(version: str, folder: Path) -> Path:
    """The bindings of a version, unpacked; returns the folder that holds `tensorrt_bindings`."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    subprocess.run([*pip, f"tensorrt-cu12-bindings=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "wheel")
    return folder / "wheel"


def empty_libraries(bindings: Path, folder: Path) -> None:
    """Libraries with the names that the bindings link to, whose functions do nothing."""
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    (library,) = bindings.glob("tensorrt_bindings/tensorrt*.so")
    for name in sorted(set(re.findall(rb"libnv[a-z_]+\.so\.\d+", library.read_bytes()))):
        soname = name.decode()
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(folder / soname), str(source)]
        subprocess.run(command, check=True)


def generate(module: str, path: list[Path], libraries: Path | None, out: Path) -> str:
    """What pybind11-stubgen says of a module, in a process of its own."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)))
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    command = [sys.executable, "-m", "pybind11_stubgen", "--output-dir", str(out), "--ignore-all-errors", module]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    package = out / module
    (compiled,) = [file for file in package.glob("*.pyi") if file.name != "__init__.pyi"]
    return compiled.read_text() + "\n" + (package / "__init__.pyi").read_text()


def condense(text: str, version: str) -> str:
    """The classes, enums and signatures of `KEPT`: no documentation and no values."""
    text = re.sub(r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", text)
    text = text.replace("typing.SupportsInt", "int")  # what pybind11 3 writes for the same C++ int
    tree = ast.parse("\n".join(_valid(line) for line in text.splitlines()))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            node.body = [item for item in node.body if not _left_out(item)] or [ast.Expr(ast.Constant(...))]
        if isinstance(node, ast.FunctionDef):
            node.args.defaults = [ast.Constant(...) for _ in node.args.defaults]
            node.args.kw_defaults = [None if item is None else ast.Constant(...) for item in node.args.kw_defaults]
    seen: set[str] = set()
    body: list[ast.stmt] = []
    for item in tree.body:
        if isinstance(item, ast.ClassDef | ast.FunctionDef) and item.name in KEPT - seen:
            seen.add(item.name)
            body.append(item)
    header = (
        "# mypy: ignore-errors\n"
        f"# {version}: signatures from its own bindings, written by tools/dev/tensorrt_api/make_stubs.py.\n"
        "from __future__ import annotations\n\nimport collections.abc\nimport typing\n\n"
        "import numpy\nimport typing_extensions\n\n__version__: str\n\n"
    )
    lines = re.sub(r":\n\s+\.\.\.(?=\n|$)", ": ...", ast.unparse(ast.Module(body, []))).splitlines()
    return header + "\n".join(line for line in lines if line.strip()) + "\n"


def _valid(line: str) -> str:
    """A signature that is no Python (an argument called `in`, a default before one without) takes anything."""
    match = re.match(r"(\s*def \w+)\(.*\)( -> .*)?:(\s*\.\.\.)?$", line)
    if match is None:
        return line
    try:
        ast.parse(line.strip().removesuffix("...").strip() + " ...")
    except SyntaxError:
        return f"{match[1]}(*arguments, **keywords){match[2] or ''}:{match[3] or ''}"
    return line


def _left_out(node: ast.stmt) -> bool:
    """Documentation, and what pybind11 gives every enum."""
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__eq__", "__ne__", "__hash__", "__repr__", "__getstate__", "__setstate__", "__index__")
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def make(version: str, out: Path) -> Path:
    """Write the stub of one version to `out/<version>/tensorrt.pyi`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if version == RTX:
            name = f"tensorrt_rtx {importlib.metadata.version('tensorrt-rtx-cu13')}"
            text = generate("tensorrt_rtx_bindings", [], None, folder / "out")
        else:
            name = f"tensorrt {version}"
            bindings = download(version, folder)
            empty_libraries(bindings, folder)
            text = generate("tensorrt_bindings", [bindings], folder, folder / "out")
    target = out / name.replace(" ", "-") / "tensorrt.pyi"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(condense(text, name))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for version in arguments.versions:
        sys.stdout.write(f"{make(version, arguments.out)}\n")


if __name__ == "__main__":
    main()
