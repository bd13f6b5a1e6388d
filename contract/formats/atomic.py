"""Write files and folders atomically: under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path


def write_bytes(path: Path, data: bytes | memoryview, mode: int = 0o644, sync: bool = True) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Args:
        mode: permissions of the file; mkstemp's default is private, and most files must be readable by others.
        sync: wait until the data is on the disk; otherwise a power failure may leave a partial file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(
    path: Path, lock: Callable[[Path], AbstractContextManager[None]] = lambda path: nullcontext()
) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes `path`'s place, on error it is removed.

    An existing folder at `path` is replaced only after the new one is complete.

    Args:
        lock: called with an existing `path`; its context is held while the new folder takes its place.
    """
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
