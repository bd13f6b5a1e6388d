"""Changing a bundle: nothing is lost between processes, readers never wait, and a dead process holds no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.edit import LOCK_NAME, check_writable, edit, locked
from qwen3vl_edge.contract.bundle.manifest import Manifest
from qwen3vl_edge.contract.bundle.measurements import BasisRecord
from qwen3vl_edge.contract.bundle.open import open_bundle, read_manifest, record_file
from qwen3vl_edge.contract.errors import BundleError
from qwen3vl_edge.contract.formats import atomic
from tests.contract.test_manifest import MANIFEST
from tests.support.paths import ROOT

IMPORTS = """
import sys
from dataclasses import replace
from pathlib import Path
from qwen3vl_edge.contract.bundle.edit import edit
folder = Path(sys.argv[1])
"""
ADD_FIFTY = """
for index in range(50):
    with edit(folder) as change:
        change.manifest = replace(change.manifest, tools=change.manifest.tools | {f"{sys.argv[2]} {index}": "1"})
"""
HOLD = """
with edit(folder) as change:
    change.manifest = replace(change.manifest, tools={})
    print("inside", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of small files."""
    folder = tmp_path / "bundle"
    for name in MANIFEST.named_files:
        atomic.write_bytes(folder / name, name.encode())
    replace(MANIFEST, files=tuple(record_file(folder, folder / name) for name in MANIFEST.named_files)).write(folder)
    return folder


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IMPORTS + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def add_basis(folder: Path, name: str) -> None:
    """Write a file and make it the bundle's basis."""
    file = folder / "wire" / name
    atomic.write_bytes(file, name.encode())
    with edit(folder) as change:
        change.manifest = replace(change.manifest, basis=BasisRecord(f"wire/{name}", "fp32", 2, 2, 1, (8,), (1,), (1,)))
        change.written = (record_file(folder, file),)


def test_two_processes_lose_nothing(bundle: Path) -> None:
    processes = [start(ADD_FIFTY, bundle, name) for name in ("one", "two")]
    while any(process.poll() is None for process in processes):
        open_bundle(bundle)  # whole at every moment
    assert [process.wait() for process in processes] == [0, 0]
    expected = {f"{name} {index}" for name in ("one", "two") for index in range(50)}
    assert open_bundle(bundle).manifest.tools.keys() == MANIFEST.tools.keys() | expected


def test_a_killed_process_leaves_no_lock_and_no_change(bundle: Path) -> None:
    process = start(HOLD, bundle)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    assert open_bundle(bundle).manifest.tools == MANIFEST.tools  # a reader does not wait
    process.send_signal(signal.SIGKILL)
    process.communicate()
    add_basis(bundle, "after")
    assert open_bundle(bundle).manifest.tools == MANIFEST.tools


def test_replaced_files_are_deleted_and_others_stay(bundle: Path) -> None:
    add_basis(bundle, "first")
    (bundle / "wire" / "notes").write_text("of no manifest")
    add_basis(bundle, "second")
    assert sorted(path.name for path in (bundle / "wire").iterdir()) == ["notes", "second"]
    (bundle / "wire" / "notes").unlink()
    with edit(bundle) as change:
        change.manifest = replace(change.manifest, basis=None)
    assert not (bundle / "wire").exists()
    names = {record.path for record in open_bundle(bundle).manifest.files}
    assert names == set(MANIFEST.named_files)
    assert LOCK_NAME not in names


def test_an_error_or_a_bad_manifest_changes_nothing(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()

    def fail() -> None:
        with edit(bundle) as change:
            change.manifest = replace(change.manifest, tools={})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(BundleError, match="does not record processor/none"), edit(bundle) as change:
        change.manifest = replace(change.manifest, processor=("processor/none",))
    assert (bundle / "manifest.json").read_bytes() == before
    open_bundle(bundle)


def test_a_file_that_was_replaced_meanwhile_refuses_the_change(bundle: Path) -> None:
    add_basis(bundle, "first")
    record = read_manifest(bundle).file("wire/first")
    with edit(bundle, unchanged=[record]):
        pass
    add_basis(bundle, "second")
    refused = pytest.raises(BundleError, match=r"wire/first was replaced.*Run the command again")
    with refused, edit(bundle, unchanged=[record]):
        raise AssertionError("inside")


def test_a_new_export_in_its_place_is_waited_for(bundle: Path) -> None:
    """The lock of the folder that was there is not that of the folder that is there."""
    process = start(HOLD, bundle)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    writer = start(ADD_FIFTY, bundle, "waiting")
    retired = bundle.with_name("retired")
    while "->" not in _locks_on(bundle / LOCK_NAME):
        assert writer.poll() is None
    bundle.rename(retired)
    add_all(bundle, MANIFEST)
    process.kill()
    process.communicate()
    assert writer.wait() == 0
    assert "waiting 49" in open_bundle(bundle).manifest.tools
    assert "waiting 0" not in read_manifest(retired).tools


def add_all(folder: Path, manifest: Manifest) -> None:
    with atomic.new_folder(folder, lock=locked) as staging:
        for name in manifest.named_files:
            atomic.write_bytes(staging / name, b"new " + name.encode())
        files = tuple(record_file(staging, staging / name) for name in manifest.named_files)
        replace(manifest, files=files).write(staging)


def _locks_on(file: Path) -> str:
    """The kernel's lines on a file's locks; "->" marks one that waits."""
    inode = f":{file.stat().st_ino} "
    return "\n".join(line for line in Path("/proc/locks").read_text().splitlines() if inode in line)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own, and all in them, are this user's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name) / "bundle"


def test_a_folder_that_cannot_be_written_is_refused(reachable: Path) -> None:
    add_all(reachable, MANIFEST)
    os.chmod(reachable, 0o555)
    child = os.fork()
    if child == 0:  # root may write anywhere: as another user
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            open_bundle(reachable)
            messages = []
            for attempt in (lambda: edit(reachable).__enter__(), lambda: check_writable(reachable)):
                try:
                    attempt()
                except BundleError as error:
                    messages.append(str(error))
            expected = f"bundle {reachable} cannot be changed"
            wanted = len(messages) == 2 and all(expected in text and "writable" in text for text in messages)
            status = 0 if wanted else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.chmod(reachable, 0o755)


def test_no_lock_file_is_put_where_no_bundle_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"), edit(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
