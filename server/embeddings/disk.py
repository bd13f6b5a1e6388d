"""Embeddings on disk, as a second level below memory: they survive a restart.

    FOLDER/<sha256 of the client's name>/<hash of the embeddings>.held

A file is the body of a `PUT /v1/embeddings/{hash}`, then the sha256 of its two names. Its content is verified against
its names when read, and so against the served model: a truncated or altered file, or one of another model or from
another client's folder, is never used. So writes need not wait for the disk, and a power failure loses entries, not
answers. A file's modification time is its last use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.wire.codec import decode_medium, encode_medium
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash, is_hash
from qwen3vl_edge.contract.wire.request import Limits, MediaEmbeddings
from qwen3vl_edge.server.options import ServerOptions

logger = logging.getLogger("server")
_SUFFIX, _EARLIER_SUFFIX = ".held", ".embeds"  # an earlier release's files do not say whose they are
_MARK_BYTES = 32
_EXPIRED_AT_ONCE = 64  # so that a request never waits while thousands are deleted
_HEADER_BYTES = 2**16  # most of a file's header; some 1,000 with three DeepStack levels


@dataclass
class _File:
    size: int
    used: float


class EmbeddingDisk:
    """A folder of at most `max_bytes` with LRU eviction; thread-safe.

    Args:
        folder: created if missing, readable by this user only; used by one server at a time.
        keep_s: seconds since the last use after which a file is deleted.
        model_hash: returns the hash of the served model.
        now: returns Unix seconds.

    Raises:
        InputError: the folder cannot be used, or another server uses it.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        keep_s: float,
        model_hash: Callable[[], str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.max_bytes = max_bytes
        self.hits = self.damaged = 0
        self._folder = folder
        self._keep_s = keep_s
        self._model_hash = model_hash
        self._now = now
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], _File] = OrderedDict()  # in LRU order
        self._bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._own = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
            self._claim()
            self._scan()
        except OSError as error:
            raise InputError(f"{folder} cannot be used ({error.strerror})", field="hold_folder") from None

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        with self._lock:
            self._make_room(0)
            return self._bytes

    def keep(self, media: MediaEmbeddings, namespace: str) -> None:
        """Store validated embeddings under their `hash`. A disk error loses the entry, not the request."""
        if media.hash is None or self._touch(key := (_folder_of(namespace), media.hash)):
            return
        body = encode_medium(media, self._model_hash())
        size = body.size + _MARK_BYTES
        if size > self.max_bytes:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with self._lock:
                self._make_room(size)
            atomic.write_bytes(path, bytes(body) + _mark(key), 0o600, sync=False)
        except OSError as error:
            logger.warning("embeddings cannot be held in %s (%s)", self._folder, error.strerror)
            return
        with self._lock:
            if key not in self._files:  # another thread may have added it
                self._make_room(size)
                self._bytes += size
                self._files[key] = _File(size, self._now())
        self._stamp(key)

    def find(self, name: str, namespace: str, most_bytes: int | None = None) -> MediaEmbeddings | None:
        """The verified embeddings of a hash, or None; counts as a use. The arrays are views of the file's bytes.

        Args:
            most_bytes: embeddings that are larger cannot be the ones that are wanted, and are not read.

        Raises:
            ServerUnavailableError: the model is still loading, so its hash is unknown.
        """
        key = (_folder_of(namespace), name)
        with self._lock:
            size = self._files[key].size if key in self._files else 0
        if most_bytes is not None and size > most_bytes + _HEADER_BYTES:
            return None
        media = self._opened(key, lambda path: memoryview(path.read_bytes()), verify=True)
        self.hits += media is not None
        return media

    def describe(self, name: str, namespace: str) -> MediaEmbeddings | None:
        """What `find` would return, without verifying its tensors: of the file its header alone is read.

        Raises:
            ServerUnavailableError: as `find`.
        """
        return self._opened((_folder_of(namespace), name), _mapped, verify=False)

    def _opened(
        self, key: tuple[str, str], read: Callable[[Path], memoryview], *, verify: bool
    ) -> MediaEmbeddings | None:
        if not self._touch(key):
            return None
        model_hash, name = self._model_hash(), key[1]
        try:
            content = read(self._path(key))
            if content[-_MARK_BYTES:] != _mark(key):
                raise InputError("it was stored under another name")
            media, made_for = decode_medium(content[:-_MARK_BYTES], Limits(max_body_bytes=len(content)))
            if made_for != model_hash:
                return None  # from another model, which may be served again
            if media.hash != name or (verify and embedding_hash(media, model_hash) != name):
                raise InputError("its content does not match its hash")
        except (OSError, ValueError, ContractError) as error:
            if self._drop(key) and not isinstance(error, FileNotFoundError):
                logger.warning("held embeddings %s are dropped (%s)", self._path(key).name, error)
                self.damaged += 1
            return None
        return media

    def close(self) -> None:
        """Release the folder for another server."""
        os.close(self._own)

    def _claim(self) -> None:
        import fcntl  # not available on every system

        try:
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when this process ends for any reason
        except BlockingIOError:
            os.close(self._own)
            raise InputError(
                f"another server uses {self._folder}", field="hold_folder", remedy="Give each server its own folder."
            ) from None

    def _scan(self) -> None:
        """Index the files of an earlier server, and delete its unfinished ones."""
        files = []
        for path in self._folder.glob("*/*"):
            unfinished = path.name.startswith(".") and (_SUFFIX in path.name or _EARLIER_SUFFIX in path.name)
            if not is_hash(path.parent.name) or not (unfinished or is_hash(path.stem)):
                continue
            if unfinished or path.suffix == _EARLIER_SUFFIX:
                path.unlink(missing_ok=True)
            elif path.suffix == _SUFFIX:
                status = path.stat()
                key = (path.parent.name, path.stem)
                files.append((min(status.st_mtime, self._now()), key, status.st_size))
        for used, key, size in sorted(files):
            self._files[key] = _File(size, used)
            self._bytes += size
        self._make_room(0)

    def _touch(self, key: tuple[str, str]) -> bool:
        with self._lock:
            self._make_room(0)
            file = self._files.get(key)
            if file is None:
                return False
            if self._expired(file):
                self._forget(key)
                return False
            file.used = self._now()
            self._files.move_to_end(key)
        self._stamp(key)
        return True

    def _stamp(self, key: tuple[str, str]) -> None:
        """Set the file's time to now, to keep the LRU order over a restart; the kernel's own clock is too coarse."""
        now = self._now()
        with contextlib.suppress(OSError):  # it was evicted meanwhile
            os.utime(self._path(key), (now, now))

    def _make_room(self, size: int) -> None:
        """Evict until `size` bytes fit, and a few that have expired; one that has and is still here is not found.

        Called with the lock.
        """
        expired = 0
        while self._files:
            key, file = next(iter(self._files.items()))
            if self._bytes + size <= self.max_bytes:
                if expired == _EXPIRED_AT_ONCE or not self._expired(file):
                    return
                expired += 1
            self._forget(key)

    def _expired(self, file: _File) -> bool:
        return file.used <= self._now() - self._keep_s

    def _drop(self, key: tuple[str, str]) -> bool:
        with self._lock:
            return self._forget(key)

    def _forget(self, key: tuple[str, str]) -> bool:
        """Called with the lock."""
        file = self._files.pop(key, None)
        if file is None:
            return False
        self._bytes -= file.size
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)
        return True

    def _path(self, key: tuple[str, str]) -> Path:
        return self._folder / key[0] / f"{key[1]}{_SUFFIX}"


def open_disk(options: ServerOptions, model_hash: Callable[[], str]) -> EmbeddingDisk | None:
    """Open the folder of the options, None if they have none.

    Raises:
        InputError: as `EmbeddingDisk`.
    """
    if options.hold_folder is None:
        return None
    return EmbeddingDisk(options.hold_folder, options.hold_disk_mib * 2**20, options.hold_disk_s, model_hash)


def _mapped(path: Path) -> memoryview:
    """A file's bytes, read when they are used. Raises: OSError. ValueError: it is empty."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _mark(key: tuple[str, str]) -> bytes:
    """Ends a file: its two names."""
    return hashlib.sha256("/".join(key).encode()).digest()


def _folder_of(namespace: str) -> str:
    """A client's folder; hashed, so that any name is valid, cannot escape the folder, and is not listed."""
    return hashlib.sha256(f"qwen3vl-edge namespace 1\n{namespace}".encode()).hexdigest()
