"""A store of embeddings by hash, so that a later turn of a chat need not send them again.

In memory, and with `server/embeddings/disk.py` on disk as well.

Bounded in bytes and time, with LRU eviction. Only embeddings that were validated against the model are stored, as
copies: a view would keep the whole request body in memory.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference, ModelShape
from qwen3vl_edge.server.embeddings.disk import EmbeddingDisk
from qwen3vl_edge.server.errors import EmbeddingsNotHeldError

_EXPIRED_AT_ONCE = 64  # so that a request never waits while thousands are dropped


@dataclass
class _Entry:
    media: MediaEmbeddings
    expires: float


class EmbeddingStore:
    """The embedding store of one server; thread-safe.

    A request keeps the embeddings that it looked up until it ends, even if they are evicted meanwhile; their bytes are
    then no longer counted here.

    Args:
        max_bytes: size limit of all embeddings together; 0 stores none.
        keep_s: seconds since the last use after which an entry expires.
        clock: monotonic seconds.
        disk: second level, which keeps entries longer and after eviction from memory.
    """

    def __init__(
        self,
        max_bytes: int,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
        disk: EmbeddingDisk | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._keep_s = keep_s
        self._clock = clock
        self.disk = disk
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of embeddings in memory."""
        with self._lock:
            self._expire()
            return self._bytes

    def keep(self, media: MediaEmbeddings, namespace: str = "") -> bool:
        """Store a copy of validated embeddings under their `hash`; False if they do not fit or have no hash."""
        if media.hash is None or media.nbytes > self.max_bytes:
            return False
        self._keep_in_memory((namespace, media.hash), media)
        if self.disk is not None:
            self.disk.keep(media, namespace)
        return True

    def _keep_in_memory(self, key: tuple[str, str], media: MediaEmbeddings) -> None:
        with self._lock:
            self._expire()
            known = self._touch(key) is not None
        if known:
            return
        copied = replace(
            media,
            embeds=_owned(media.embeds),
            deepstack=tuple(_owned(level) for level in media.deepstack),
            origin={},
        )
        with self._lock:
            if self._touch(key) is None:  # another thread may have been faster
                while self._bytes + copied.nbytes > self.max_bytes:
                    self._drop(next(iter(self._entries)))
                self._entries[key] = _Entry(copied, self._clock() + self._keep_s)
                self._bytes += copied.nbytes

    def keep_all(self, request: GenerateRequest, namespace: str = "") -> None:
        """Store the embeddings of a validated request."""
        for item in request.media:
            self.keep(item, namespace)

    def find(self, name: str, namespace: str = "", most_bytes: int | None = None) -> MediaEmbeddings | None:
        """The embeddings of a hash, or None; counts as a use. May read from disk.

        Args:
            most_bytes: a larger file is not read.

        Raises:
            ServerUnavailableError: as `EmbeddingDisk.find`.
        """
        media = self._in_memory((namespace, name))
        if media is None and self.disk is not None:
            media = self.disk.find(name, namespace, most_bytes)
            if media is not None and media.nbytes <= self.max_bytes:
                self._keep_in_memory((namespace, name), media)
        return media

    def describe(self, name: str, namespace: str = "") -> MediaEmbeddings | None:
        """As `find`, without verifying what is on disk alone: its tensors must not be used.

        Raises:
            ServerUnavailableError: as `EmbeddingDisk.find`.
        """
        media = self._in_memory((namespace, name))
        if media is None and self.disk is not None:
            return self.disk.describe(name, namespace)
        return media

    def lookup(
        self, references: Sequence[MediaReference], namespace: str = "", model: ModelShape | None = None
    ) -> list[MediaEmbeddings]:
        """The embeddings of references, in order; their arrays are read-only.

        Each is read once, however often it is named.

        Args:
            model: nothing larger than the grids of the references is read from disk.

        Raises:
            EmbeddingsNotHeldError: some are not in the store; names all of them.
            WireError: a reference names another grid than the embeddings have.
        """
        most: dict[str, int | None] = {}
        for item in references:
            size = None if model is None else most_bytes(item.grid, model)
            most[item.hash] = size if size is None else max(size, most.get(item.hash) or 0)
        found = {name: self.find(name, namespace, size) for name, size in most.items()}
        held = [found[item.hash] for item in references]
        missing = [item for item, media in zip(references, held, strict=True) if media is None]
        with self._lock:
            self.misses += len(missing)
            self.hits += len(references) - len(missing)
        if missing:
            names = tuple(dict.fromkeys(item.hash for item in missing))
            raise EmbeddingsNotHeldError(f"media.{missing[0].index}", names)
        return [_as_named(item, media) for item, media in zip(references, held, strict=True) if media is not None]

    def close(self) -> None:
        """Release the disk folder for another server."""
        if self.disk is not None:
            self.disk.close()

    def _in_memory(self, key: tuple[str, str]) -> MediaEmbeddings | None:
        with self._lock:
            self._expire()
            return self._touch(key)

    def _touch(self, key: tuple[str, str]) -> MediaEmbeddings | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._clock()
        if entry.expires <= now:
            self._drop(key)
            return None
        entry.expires = now + self._keep_s
        self._entries.move_to_end(key)
        return entry.media

    def _expire(self) -> None:
        """Drop a few that have expired; one that has and is still here is not found."""
        now = self._clock()
        for _ in range(_EXPIRED_AT_ONCE):
            key, oldest = next(iter(self._entries.items()), (("", ""), None))  # in LRU order
            if oldest is None or oldest.expires > now:
                return
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes -= self._entries.pop(key).media.nbytes


def most_bytes(grid: Grid, model: ModelShape) -> int:
    """The most bytes of a grid's embeddings and DeepStack levels: float32."""
    return grid.tokens(model.merge_size) * model.hidden_size * (1 + model.deepstack_levels) * 4


def _owned(array: NDArray[np.floating]) -> NDArray[np.floating]:
    copied = np.array(array, order="C")
    copied.flags.writeable = False  # shared between requests
    return copied


def _as_named(reference: MediaReference, held: MediaEmbeddings) -> MediaEmbeddings:
    if reference.grid != held.grid:
        raise WireError(
            "grid differs from that of the stored embeddings",
            field=f"grid_thw.{reference.index}",
            expected=held.grid.as_list(),
            got=reference.grid.as_list(),
        )
    return replace(held, kind=reference.kind, origin=reference.origin)
