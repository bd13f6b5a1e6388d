"""What is built and installed: the public API, sdist and wheel, and the commands outside of the repository."""

from __future__ import annotations

import ast
import base64
import importlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import qwen3vl_edge
from qwen3vl_edge.contract import errors
from tests.support.fresh_environment import make_environment
from tests.support.paths import ROOT
from tests.support.waiting import until

PARTS = ("calibration", "contract", "edge_runtime", "export", "server", "tools")
OLD = ROOT / "tests" / "support" / "files_of_an_earlier_version"
BUILD_SDIST = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"


def clean() -> dict[str, str]:
    """This process's environment without what would bring the repository onto `sys.path`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def build_wheel(source: Path, out: Path) -> Path:
    """With the setuptools of this environment, from a folder or an sdist; no network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, cwd=out.parent, env=clean())
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    folder = tmp_path_factory.mktemp("source")
    for name in listed:
        path, copy = ROOT / name, folder / name
        if name and os.path.lexists(path):  # deleted and not yet committed
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("sdist") / "tree"
    shutil.copytree(source, tree, symlinks=True)
    subprocess.run(
        [sys.executable, "-c", BUILD_SDIST, str(tree.parent)], cwd=tree, check=True, capture_output=True, env=clean()
    )
    (archive,) = tree.parent.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    shutil.copytree(source, tree, symlinks=True)
    return build_wheel(tree, tree.parent / "dist")


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheel, what `edge-lean` declares, and foreign packages named as the parts."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    commands = make_environment(environment, wheel, "qwen3vl-edge", "edge-lean")
    (site,) = environment.glob("lib/python*/site-packages")
    for name in ("tools", "server"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise RuntimeError('a foreign package was imported')\n")
    return commands


def run(commands: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(commands / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, check=False)


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, qwen3vl_edge\nprint(*{name.split('.')[0] for name in sys.modules} & {'numpy', 'httpx', 'torch'})\n"
    )
    code += "print(*(name for name in sys.modules if name.startswith('qwen3vl_edge.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_each_public_name_is_the_one_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "qwen3vl_edge" / "__init__.py").read_text())
    checked = {
        alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("qwen3vl_edge.")
        for alias in node.names
    }
    assert sorted({*checked, "__version__"}) == qwen3vl_edge.__all__
    assert set(qwen3vl_edge.__all__) <= set(dir(qwen3vl_edge))
    for name, module in checked.items():
        assert getattr(qwen3vl_edge, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'open_egde'"):
        _ = qwen3vl_edge.open_egde  # type: ignore[attr-defined]


def test_every_error_of_the_contract_is_public() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined <= set(qwen3vl_edge.__all__)


def test_the_wheel_holds_what_is_shipped(wheel: Path) -> None:
    expected = {
        f"qwen3vl_edge/{path.relative_to(ROOT)}"
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
        if not path.is_relative_to(ROOT / "tools" / "dev")
    }
    pages = ("edge_runtime/daemon/page", "tools/parity/page")
    assets = [path for folder in pages for path in (ROOT / folder).iterdir() if path.is_file() and path.suffix != ".py"]
    expected |= {f"qwen3vl_edge/{path.relative_to(ROOT)}" for path in assets}
    expected |= {f"qwen3vl_edge/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    found = contents(wheel)
    info = f"qwen3vl_edge-{qwen3vl_edge.__version__}.dist-info"
    assert {name for name in found if not name.startswith(f"{info}/")} == expected
    assert found[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert found["qwen3vl_edge/contract/errors.py"] == (ROOT / "contract" / "errors.py").read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        assert not [item.filename for item in archive.infolist() if stat.S_ISLNK(item.external_attr >> 16)]


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(build_wheel(sdist, tmp_path / "dist")) == contents(wheel)


@pytest.mark.parametrize("file", sorted((ROOT / "deploy").rglob("*Dockerfile")), ids=lambda file: file.name)
def test_what_an_image_copies_builds_the_same_wheel(file: Path, source: Path, wheel: Path, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for line in re.findall(r"^COPY (.+)$", file.read_text(), re.M):
        *names, target = line.split()
        for name in names:
            if (source / name).is_dir():
                shutil.copytree(source / name, context / target, symlinks=True)
            else:
                shutil.copy2(source / name, context / target)
    assert contents(build_wheel(context, tmp_path / "dist")) == contents(wheel)


def test_the_installed_package_is_the_one_that_runs(commands: Path, tmp_path: Path) -> None:
    done = run(commands, tmp_path, "python", "-c", "import qwen3vl_edge; print(qwen3vl_edge.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(commands.parent)
    done = run(commands, tmp_path, "python", "-c", "import tools")
    assert "a foreign package was imported" in done.stderr


@pytest.mark.parametrize("start", [("qwen3vl-edge",), ("python", "-m", "qwen3vl_edge")], ids=["script", "module"])
def test_help_outside_of_the_repository(commands: Path, tmp_path: Path, start: tuple[str, ...]) -> None:
    done = run(commands, tmp_path, *start, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_inspect_outside_of_the_repository(commands: Path, tmp_path: Path) -> None:
    done = run(commands, tmp_path, "qwen3vl-edge", "inspect", str(OLD / "bundle"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"fp16"' in done.stdout


def test_the_benches_are_not_shipped(commands: Path, tmp_path: Path) -> None:
    done = run(commands, tmp_path, "qwen3vl-edge", "bench", "wire")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr


@contextmanager
def running_daemon(commands: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The lean daemon of an installed package: its URL once it is ready, and its process."""
    options = ["--bundle", str(OLD / "bundle"), "--server", "http://127.0.0.1:9", "--port", "0", "--preprocess", "lean"]
    log = folder / "daemon.log"
    with log.open("wb") as file:
        command = [str(commands / "qwen3vl-edge"), "edge", *options]
        process = subprocess.Popen(command, cwd=folder, env=clean(), stdout=file, stderr=file)
    url = re.compile(r"http://[^\s;]+(?= answers 503)")

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        found = url.search(log.read_text())
        return found is not None and httpx.get(f"{found[0]}/readyz", timeout=30).status_code == 200

    try:
        until(ready, log.read_text)
        yield url.findall(log.read_text())[0], process
    finally:
        process.kill()
        process.wait()


def test_the_lean_daemon_outside_of_the_repository(commands: Path, tmp_path: Path) -> None:
    picture = f"data:image/png;base64,{base64.b64encode((OLD / 'picture.png').read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What is it?"}]
    chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    with running_daemon(commands, tmp_path) as (url, process), httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "page.js" in client.get("/").text
        encoded = client.post("/v1/encode", json=chat)
        assert (encoded.status_code, len(encoded.content) > 1000) == (200, True), encoded.text[:300]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
