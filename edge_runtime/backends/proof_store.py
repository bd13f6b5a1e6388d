"""Which self-tests have passed on this machine: one empty file each, named after all that the result depends on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qwen3vl_edge.contract.formats import atomic


class ProofStore:
    """A folder of passed self-tests; one that cannot be written only means that they run again at the next start.

    Args:
        folder: created when something is added; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def holds(self, key: Sequence[str]) -> bool:
        """Whether a test with this key has passed."""
        return self._folder is not None and _file(self._folder, key).is_file()

    def add(self, key: Sequence[str]) -> None:
        """Keep that a test with this key has passed."""
        if self._folder is not None:
            with suppress(OSError):
                atomic.write_bytes(_file(self._folder, key), b"", sync=False)


def _file(folder: Path, key: Sequence[str]) -> Path:
    return folder / hashlib.sha256("\n".join(key).encode()).hexdigest()


def machine_store(environment: Mapping[str, str] = os.environ) -> ProofStore:
    """This user's store."""
    base = machine_cache(environment)
    return ProofStore(base / "self-tests" if base is not None else None)


def machine_cache(environment: Mapping[str, str] = os.environ) -> Path | None:
    """This user's cache folder: systemd's CacheDirectory where the unit has one, else as the XDG specification says."""
    base = environment.get("CACHE_DIRECTORY", "").split(":")[0] or environment.get("XDG_CACHE_HOME", "")
    if not base and environment.get("HOME"):
        base = str(Path(environment["HOME"]) / ".cache")
    return Path(base) / "qwen3vl-edge" if base else None
