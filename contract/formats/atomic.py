"""Write files and folders atomically: under a temporary name, then renamed.

A path that is a symbolic link stays one: what it leads to is replaced.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path


def write_bytes(
    path: Path,
    data: bytes | memoryview,
    mode: int = 0o644,
    sync: bool = True,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Args:
        mode: permissions of the file; mkstemp's default is private, and most files must be readable by others.
        sync: wait until the data is on the disk; otherwise a power failure may leave a partial file.
        owner: user and group to give it to, where this process may.
    """
    path = target_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if owner is not None:
            with suppress(OSError):
                os.chown(name, *owner)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def target_of(path: Path) -> Path:
    """Where a path leads, by whatever links; a link that leads to nothing yet leads there too."""
    return Path(os.path.realpath(path))


@contextmanager
def new_folder(
    path: Path, lock: Callable[[Path], AbstractContextManager[None]] = lambda path: nullcontext()
) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes `path`'s place, on error it is removed.

    An existing folder at `path` is replaced only after the new one is complete.

    Args:
        lock: called with an existing `path`; its context is held while the new folder takes its place.
    """
    path = target_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staging
        os.chmod(staging, 0o755)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            with lock(path):
                os.replace(path, retired / path.name)
                os.replace(staging, path)
            shutil.rmtree(retired)
        else:
            os.replace(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes `path`'s place, on error it is removed."""
    path = target_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
