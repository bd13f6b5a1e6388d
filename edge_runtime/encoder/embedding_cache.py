"""Embeddings on disk by the content that they were computed from, so that no picture is encoded twice.

A file is the sha256 of its content, then one array in numpy's format: [1 + DeepStack levels, n, D]. A truncated
or altered file is deleted and its picture encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings

logger = logging.getLogger("edge")
_DIGEST_BYTES = 32
_SUFFIX = ".embeds"
_ABANDONED_SECONDS = 600  # a temporary file this old belongs to a process that was killed


class EmbeddingCache:
    """A folder of at most `max_bytes`, evicted least recently used first; shared by threads and across restarts.

    Args:
        folder: created if missing.
        identity: all that the embeddings of given pixels depend on: bundle, graphs, backend, precision, wire dtype.

    Raises:
        InputError: the folder cannot be created or read.
    """

    def __init__(self, folder: Path, max_bytes: int, identity: str) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._identity = hashlib.sha256(identity.encode()).digest()
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            next(folder.iterdir(), None)
            self._make_room(0)
        except OSError as error:
            raise InputError(f"cache folder {folder} cannot be used ({error.strerror})", field="cache") from None

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self._bytes

    def key(self, grid: Grid, pixels: NDArray[Any]) -> str:
        """Key of the embeddings of these pixels: float32 [patches, patch values] or uint8 [H, W, 3], never the same."""
        digest = hashlib.sha256(self._identity)
        digest.update(f"{grid} {pixels.dtype}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def get(self, key: str) -> Embeddings | None:
        """The embeddings, or None; a corrupt file is removed."""
        stacked = self._read(key)  # finds what another daemon wrote too
        with self._lock:
            if stacked is None:
                self.misses += 1
                return None
            self.hits += 1
        return Embeddings(stacked[0], tuple(stacked[1:]))

    def put(self, key: str, embeddings: Embeddings) -> None:
        """Store embeddings. On a full or broken disk the entry is not stored, and the request continues."""
        buffer = io.BytesIO()
        np.save(buffer, np.stack([embeddings.embeds, *embeddings.deepstack]), allow_pickle=False)
        body = buffer.getvalue()
        size = len(body) + _DIGEST_BYTES
        if size > self.max_bytes:
            return
        with self._lock:
            self._make_room(size)
            try:
                atomic.write_bytes(self._path(key), hashlib.sha256(body).digest() + body)
                _touch(self._path(key))
            except OSError as error:
                logger.warning("cache %s cannot be written (%s)", self.folder, error.strerror)
                return
            self._bytes += size - self._sizes.pop(key, 0)
            self._sizes[key] = size

    def _read(self, key: str) -> NDArray[Any] | None:
        path = self._path(key)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
                raise ValueError("its checksum is wrong")
            stacked: NDArray[Any] = np.load(io.BytesIO(content[_DIGEST_BYTES:]), allow_pickle=False)
            _touch(path)
        except FileNotFoundError:
            self._forget(key)
            return None
        except (OSError, ValueError) as error:
            logger.warning("cache entry %s is dropped (%s)", path.name, error)
            self._forget(key)
            return None
        return stacked

    def _remove_abandoned(self) -> None:
        oldest = time.time() - _ABANDONED_SECONDS
        for path in self.folder.glob(f".*{_SUFFIX}.*"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                pass  # another daemon was still writing it, and is done now

    def _make_room(self, size: int) -> None:
        """Evict until `size` bytes fit. The folder is listed anew: the limit is for all daemons that write there."""
        files = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # evicted by another daemon
                status = path.stat()
                files.append((status.st_mtime_ns, path.stem, status.st_size))
        self._sizes = OrderedDict((key, length) for _, key, length in sorted(files))
        self._bytes = sum(self._sizes.values())
        while self._sizes and self._bytes + size > self.max_bytes:
            key, freed = self._sizes.popitem(last=False)
            self._bytes -= freed
            self._path(key).unlink(missing_ok=True)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._bytes -= self._sizes.pop(key, 0)
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def _touch(path: Path) -> None:
    """Record a use: the order of use is in the files' times, so it survives a restart. The kernel's own clock for them
    is too coarse for that."""
    now = time.time_ns()
    with contextlib.suppress(FileNotFoundError):  # evicted by another daemon
        os.utime(path, ns=(now, now))
