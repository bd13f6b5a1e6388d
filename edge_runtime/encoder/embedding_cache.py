"""Embeddings on disk by the content that they were computed from, so that no picture is encoded twice.

A file is a sha256, then one array in numpy's format: [1 + DeepStack levels, n, D]. The sha256 is of the file's name and
the array, so that a truncated, altered or renamed file is noticed; it is deleted and its picture encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
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
_FILES_A_PUT = 64  # that a put looks at, for what other daemons did


@dataclass
class _File:
    size: int
    used: int  # its modification time in nanoseconds


class EmbeddingCache:
    """A folder of at most `max_bytes`, evicted least recently used first; shared by threads and across restarts.

    Several daemons may share it; the limit is for all of them. Each knows its own files, and sees those of the others
    as it goes through the folder, a few files with each put. So a put costs by its own size, and the folder may exceed
    its limit by what the others wrote meanwhile: for each further daemon by about a thirty-second of the files, or
    nothing in a folder of fewer than 64.

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
        self._files: OrderedDict[str, _File] = OrderedDict()  # in LRU order
        self._bytes = 0
        self._round: Iterator[None] = iter(())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self._index()
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
            try:
                self._look_around()
                self._make_room(size)
                atomic.write_bytes(self._path(key), _digest(key, body) + body)
            except OSError as error:
                logger.warning("cache %s cannot be written (%s)", self.folder, error.strerror)
                return
            self._add(key, size, _touch(self._path(key)))

    def _read(self, key: str) -> NDArray[Any] | None:
        path = self._path(key)
        try:
            content = memoryview(path.read_bytes())
            body = content[_DIGEST_BYTES:]
            if _digest(key, body) != content[:_DIGEST_BYTES]:
                if hashlib.sha256(body).digest() == content[:_DIGEST_BYTES]:  # of an earlier release: nobody's fault
                    self._forget(key)
                    return None
                raise ValueError("its checksum is wrong")
            stacked: NDArray[Any] = np.load(io.BytesIO(body), allow_pickle=False)
        except FileNotFoundError:
            self._forget(key)
            return None
        except (OSError, ValueError) as error:
            logger.warning("cache entry %s is dropped (%s)", path.name, error)
            self._forget(key)
            return None
        used = _touch(path)
        with self._lock:
            self._add(key, len(content), used)
        return stacked

    def _remove_abandoned(self) -> None:
        oldest = time.time() - _ABANDONED_SECONDS
        for path in self.folder.glob(f".*{_SUFFIX}.*"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                pass  # another daemon was still writing it, and is done now

    def _index(self) -> None:
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if (file := _file(entry)) is not None:
                    files.append((file.used, entry.name.removesuffix(_SUFFIX), file.size))
        for used, key, size in sorted(files):
            self._add(key, size, used)
        self._make_room(0)

    def _look_around(self) -> None:
        """Go on through the folder, over and over: what other daemons added, used and evicted."""
        with contextlib.suppress(FileNotFoundError):  # somebody removed the folder; the put makes it again
            left = _FILES_A_PUT - sum(1 for _ in islice(self._round, _FILES_A_PUT))
            if left:
                self._round = self._whole_folder()
                deque(islice(self._round, left), 0)

    def _whole_folder(self) -> Iterator[None]:
        """Each step is one file."""
        unseen = dict.fromkeys(self._files)
        with os.scandir(self.folder) as entries:
            for entry in entries:
                yield
                key = entry.name.removesuffix(_SUFFIX)
                unseen.pop(key, None)
                file, known = _file(entry), self._files.get(key)
                if file is not None and (known is None or known.used < file.used):
                    self._add(key, file.size, file.used)
        for key in unseen:
            yield
            if key in self._files and not self._path(key).exists():
                self._bytes -= self._files.pop(key).size

    def _make_room(self, size: int) -> None:
        """Evict until `size` bytes fit."""
        while self._files and self._bytes + size > self.max_bytes:
            key, file = self._files.popitem(last=False)
            self._bytes -= file.size
            self._path(key).unlink(missing_ok=True)

    def _add(self, key: str, size: int, used: int) -> None:
        """It is the one that was used last."""
        known = self._files.pop(key, None)
        self._bytes += size - (0 if known is None else known.size)
        self._files[key] = _File(size, used)

    def _forget(self, key: str) -> None:
        with self._lock:
            if (file := self._files.pop(key, None)) is not None:
                self._bytes -= file.size
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def _digest(key: str, body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(f"{key}{_SUFFIX}\n".encode())
    digest.update(body)
    return digest.digest()


def _file(entry: os.DirEntry[str]) -> _File | None:
    """A file of the cache; None for any other, and for one that another daemon has evicted."""
    if not entry.name.endswith(_SUFFIX) or entry.name.startswith("."):
        return None
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None
    return _File(status.st_size, status.st_mtime_ns)


def _touch(path: Path) -> int:
    """Record a use: the order of use is in the files' times, so it survives a restart. The kernel's own clock for them
    is too coarse for that.

    Returns:
        The time of the use in nanoseconds.
    """
    now = time.time_ns()
    with contextlib.suppress(FileNotFoundError):  # evicted by another daemon
        os.utime(path, ns=(now, now))
    return now
