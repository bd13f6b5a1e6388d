"""Change a bundle that other processes may read or change: lock, read the manifest again, replace it.

Builds and calibrations write their files first, under names that no manifest uses, and take the lock only to
replace the manifest. Readers take no lock: `manifest.json` is replaced by a rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_edge.contract.bundle.manifest import FileRecord, Manifest, check_consistent
from qwen3vl_edge.contract.bundle.open import read_manifest
from qwen3vl_edge.contract.errors import BundleError

LOCK_NAME = ".edit.lock"


@dataclass
class ManifestEdit:
    """A manifest under the bundle's lock.

    Attributes:
        manifest: the current manifest on disk; the caller assigns the new one. `files` need not be updated.
        written: records of the files that the caller has written for the new manifest.
    """

    manifest: Manifest
    written: tuple[FileRecord, ...] = ()


@contextmanager
def edit(folder: Path, *, unchanged: Iterable[FileRecord] = ()) -> Iterator[ManifestEdit]:
    """Replace the manifest of a bundle; an error inside the block leaves it unchanged.

    When the block ends, records of files that the new manifest no longer names are dropped, `written` ones are
    added, the manifest is checked and written, and the files that were dropped are deleted.

    Args:
        unchanged: records of the files that the change was computed from; the bundle must still have them.

    Raises:
        BundleError: no bundle in `folder`, a folder that cannot be written, a file of `unchanged` that has been
            replaced, or a new manifest that is not consistent.
    """
    read_manifest(folder)  # do not create a lock file in a folder that is not a bundle
    with locked(folder):
        before = read_manifest(folder)
        _check_unchanged(folder, before, unchanged)
        change = ManifestEdit(before)
        yield change
        dropped = set(before.named_files) - set(change.manifest.named_files)
        records = {record.path: record for record in change.manifest.files if record.path not in dropped}
        records |= {record.path: record for record in change.written}
        after = replace(change.manifest, files=tuple(records.values()))
        check_consistent(after)
        after.write(folder)
        _delete(folder, dropped - records.keys())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the bundle's lock; waits while another thread or process holds it.

    The operating system releases the lock when the process ends for any reason.

    Raises:
        BundleError: the folder cannot be written, or the system has no POSIX file locks.
    """
    while True:
        try:
            lock = _acquire(folder / LOCK_NAME)
        except OSError as error:
            raise _not_writable(folder, error.strerror or type(error).__name__) from None
        try:
            if _is_current(lock, folder):
                yield
                return
        finally:
            os.close(lock)


def _acquire(file: Path) -> int:
    """A descriptor of the lock file that holds its lock."""
    try:
        import fcntl  # not available on every system
    except ImportError:
        raise BundleError(
            f"{file.parent} cannot be changed: this system has no POSIX file locks",
            field="bundle",
            remedy="Run the command on Linux or macOS.",
        ) from None
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        os.close(lock)
        raise
    return lock


def check_writable(folder: Path) -> None:
    """Reject a bundle that cannot be changed, before a long computation for it.

    Raises:
        BundleError: the folder cannot be written.
    """
    if not os.access(folder, os.W_OK):
        raise _not_writable(folder, "no write permission")


def _not_writable(folder: Path, reason: str) -> BundleError:
    return BundleError(
        f"bundle {folder} cannot be changed ({reason})",
        field="bundle",
        remedy="Make the folder writable, or copy the bundle to a folder that is.",
    )


def _is_current(lock: int, folder: Path) -> bool:
    """Whether the lock file is still the bundle's: an export replaces the folder together with its lock file."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder / LOCK_NAME))
    except FileNotFoundError:
        return False


def _check_unchanged(folder: Path, manifest: Manifest, unchanged: Iterable[FileRecord]) -> None:
    for record in unchanged:
        if record not in manifest.files:
            raise BundleError(
                f"bundle {folder}: {record.path} was replaced while the command ran; the bundle is unchanged",
                field=record.path,
                expected=f"sha256 {record.sha256[:12]}…",
                remedy="Run the command again.",
            )


def _delete(folder: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (folder / path).unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or already deleted
            (folder / path).parent.rmdir()
