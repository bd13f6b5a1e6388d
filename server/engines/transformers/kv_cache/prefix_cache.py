"""Prefix cache: keys and values of ended requests, for later turns of a chat, which repeat their prompt and answer.

A prefix is reused only if client, token ids and the hashes of all embeddings in it are equal. Bounded in bytes and
time, with LRU eviction. Belongs to the engine's thread.

The states of recurrent layers are those after the last token: with them an entry is a prefix as a whole, or not at all.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, ModelShape
from qwen3vl_edge.server.engines.prompt import media_spans
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import Layers, first_tokens, have_states

MIN_TOKENS = 16  # computing fewer takes no longer than the lookup


@dataclass(frozen=True)
class _NamedSpan:
    """A medium in a prompt, identified by the hash of its embeddings."""

    start: int
    end: int
    kind: str
    hash: str


@dataclass
class _Entry:
    ids: NDArray[np.int64]
    spans: tuple[_NamedSpan, ...]
    layers: Layers
    nbytes: int
    expires: float


class PrefixCache:
    """Keys and values by client, token ids and embeddings.

    Args:
        max_bytes: size limit of all entries together; 0 disables the cache.
        keep_s: seconds since the last use after which an entry expires.
        clock: monotonic seconds.
    """

    def __init__(
        self, shape: ModelShape, max_bytes: int, keep_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._shape = shape
        self._keep_s = keep_s
        self._clock = clock
        self._entries: OrderedDict[int, tuple[str, _Entry]] = OrderedDict()
        self._next = 0

    def named(self, request: GenerateRequest) -> GenerateRequest:
        """The request with the hash of every medium, computed if the device did not send it."""
        if self.max_bytes == 0 or all(item.hash for item in request.media):
            return request
        media = [item if item.hash else replace(item, hash=self._hash(item)) for item in request.media]
        return replace(request, media=tuple(media))

    def find(self, request: GenerateRequest, client: str) -> Layers | None:
        """Keys and values of the longest cached prefix of a prompt, without its last token; read-only views."""
        self.expire()
        if not self._entries:
            return None
        spans = self._named(request)
        best, length = None, MIN_TOKENS - 1
        for key, (owner, entry) in self._entries.items():
            if owner == client and (common := _usable(request.input_ids, spans, entry)) > length:
                best, length = key, common
        if best is None:
            return None
        entry = self._entries[best][1]
        entry.expires = self._clock() + self._keep_s
        self._entries.move_to_end(best)
        return first_tokens(entry.layers, length)

    def keep(
        self, request: GenerateRequest, answer: list[int], client: str, size: int, take: Callable[[], Layers]
    ) -> None:
        """Store an ended request's keys and values.

        Args:
            answer: its tokens that are computed; the last has no keys and values yet.
            size: bytes of the keys and values, or states.
            take: copies them out of the batch; called only if they fit, once there is room for them.
        """
        if size > self.max_bytes:
            return
        ids = np.concatenate([request.input_ids, np.array(answer, dtype=np.int64)])
        spans = self._named(request)
        self._forget_beginnings_of(ids, spans, client)
        while self.nbytes + size > self.max_bytes:
            self._drop(next(iter(self._entries)))
        entry = _Entry(ids, spans, take(), size, self._clock() + self._keep_s)
        self._entries[self._next] = (client, entry)
        self._next += 1
        self.nbytes += size

    def expire(self) -> None:
        """Evict entries that were not used for `keep_s` seconds."""
        now = self._clock()
        while self._entries and next(iter(self._entries.values()))[1].expires <= now:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Evict everything, when memory is short."""
        self._entries.clear()
        self.nbytes = 0

    def _forget_beginnings_of(self, ids: NDArray[np.int64], spans: tuple[_NamedSpan, ...], client: str) -> None:
        """Evict earlier turns of a chat, which a new entry contains."""
        for key, (owner, entry) in list(self._entries.items()):
            if owner == client and entry.ids.size <= ids.size and _common(ids, spans, entry) >= entry.ids.size - 1:
                self._drop(key)

    def _drop(self, key: int) -> None:
        self.nbytes -= self._entries.pop(key)[1].nbytes

    def _named(self, request: GenerateRequest) -> tuple[_NamedSpan, ...]:
        return tuple(
            _NamedSpan(span.start, span.end, span.media.kind, span.media.hash or self._hash(span.media))
            for span in media_spans(request, self._shape)
        )

    def _hash(self, medium: MediaEmbeddings) -> str:
        return embedding_hash(medium, self._shape.model_hash)


def _usable(ids: NDArray[np.int64], spans: tuple[_NamedSpan, ...], entry: _Entry) -> int:
    """Length of the prefix that an entry gives a prompt: what they have in common, with states all of the entry."""
    length = _common(ids, spans, entry)
    return length if length == entry.ids.size or not have_states(entry.layers) else 0


def _common(ids: NDArray[np.int64], spans: tuple[_NamedSpan, ...], entry: _Entry) -> int:
    """Length of the common prefix with an entry; less than the prompt, and never inside a medium."""
    count = min(ids.size - 1, entry.ids.size)
    differ = np.flatnonzero(ids[:count] != entry.ids[:count])
    length = int(differ[0]) if differ.size else count
    known = set(entry.spans)
    for span in spans:
        if span.start < length and (span not in known or span.end > length):
            length = span.start
    return length
