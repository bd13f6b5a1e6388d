"""Embeddings that a server holds by their hash: a later turn of a chat need not send them again.

In memory, and with `server/embeddings/disk.py` on disk as well.

Bounded in bytes, the longest unused go first; what nobody used for a while goes too. Nothing is held that was not
checked against the model, and what is held was copied out of its request: a view would keep the whole body in memory.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference
from qwen3vl_edge.server.embeddings.disk import EmbeddingDisk
from qwen3vl_edge.server.errors import EmbeddingsNotHeldError


@dataclass
class _Entry:
    media: MediaEmbeddings
    expires: float


class EmbeddingStore:
    """Safe to use from several threads.

    A request keeps what it looked up until it ends, also where it is dropped here meanwhile; those bytes are the
    request's then and no longer counted here.

    Args:
        max_bytes: of all embeddings together; 0 holds none.
        keep_s: seconds since the last use after which an entry goes.
        clock: seconds, never going back.
        disk: holds the same for longer, and what memory has no room for any more.
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
        """Bytes of embeddings held now."""
        with self._lock:
            self._expire()
            return self._bytes

    def keep(self, media: MediaEmbeddings, namespace: str = "") -> bool:
        """Hold a copy of checked embeddings under their `hash`; False where they do not fit or name none."""
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
        """Hold what a checked request brought."""
        for item in request.media:
            self.keep(item, namespace)

    def find(self, name: str, namespace: str = "") -> MediaEmbeddings | None:
        """What is held under a hash; finding it is a use. With a disk, it may be read.

        Raises:
            ServerUnavailableError: as `EmbeddingDisk.find`.
        """
        with self._lock:
            self._expire()
            media = self._touch((namespace, name))
        if media is None and self.disk is not None:
            media = self.disk.find(name, namespace)
            if media is not None and media.nbytes <= self.max_bytes:
                self._keep_in_memory((namespace, name), media)
        return media

    def lookup(self, references: Sequence[MediaReference], namespace: str = "") -> list[MediaEmbeddings]:
        """The embeddings of references, in order; their arrays are read-only.

        Raises:
            EmbeddingsNotHeldError: some are not here; names all of them.
            WireError: a reference names another grid than the embeddings have.
        """
        held = [self.find(item.hash, namespace) for item in references]
        missing = [item for item, media in zip(references, held, strict=True) if media is None]
        with self._lock:
            self.misses += len(missing)
            self.hits += len(references) - len(missing)
        if missing:
            names = tuple(dict.fromkeys(item.hash for item in missing))
            raise EmbeddingsNotHeldError(f"media.{missing[0].index}", names)
        return [_as_named(item, media) for item, media in zip(references, held, strict=True) if media is not None]

    def close(self) -> None:
        """Let another server use the disk."""
        if self.disk is not None:
            self.disk.close()

    def _touch(self, key: tuple[str, str]) -> MediaEmbeddings | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.expires = self._clock() + self._keep_s
        self._entries.move_to_end(key)
        return entry.media

    def _expire(self) -> None:
        now = self._clock()
        while self._entries and next(iter(self._entries.values())).expires <= now:  # the first was used longest ago
            self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes -= self._entries.pop(key).media.nbytes


def _owned(array: NDArray[np.floating]) -> NDArray[np.floating]:
    copied = np.array(array, order="C")
    copied.flags.writeable = False  # whoever would write gets a copy of his own
    return copied


def _as_named(reference: MediaReference, held: MediaEmbeddings) -> MediaEmbeddings:
    if reference.grid != held.grid:
        raise WireError(
            "grid differs from that of the held embeddings",
            field=f"grid_thw.{reference.index}",
            expected=held.grid.as_list(),
            got=reference.grid.as_list(),
        )
    return replace(held, kind=reference.kind, origin=reference.origin)
