"""Requests with an `Idempotency-Key`: generated once, answered as often as they are sent.

A request joins the in-flight generation of its key, or gets the stored answer. A keyed generation continues without
readers, because the key exists for lost connections. If no reader reconnects within `abandoned_s` seconds, it is
cancelled. Answers of failed and cancelled generations are not stored.

All state belongs to the event loop's thread and is in memory: after a restart the next request generates again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from prometheus_client import Counter as Metric

from qwen3vl_edge.contract.errors import KeyReusedError
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.live_generation import Detach, LiveGeneration
from qwen3vl_edge.server.options import ServerOptions

# What a stored answer holds, by tracemalloc: itself, a token in the log and in the result's ids, and each of the
# likeliest tokens that were asked for at its position.
_BYTES_PER_ANSWER, _BYTES_PER_TOKEN, _BYTES_PER_LIKELY_TOKEN = 2048, 112, 128
_EVICTED_AT_ONCE = 64  # so that a request never waits for the eviction of thousands


def fingerprint(request: GenerateRequest) -> bytes:
    """sha256 of what determines the answer: ids, grids, tensors and sampling.

    Excludes `stream` and `request_id`, which determine only the form of the answer, and the tensors' wire encoding.
    """
    digest = hashlib.sha256(json.dumps(request.sampling.to_dict(), sort_keys=True).encode())
    digest.update(np.ascontiguousarray(request.input_ids).data)
    for item in request.media:
        for array in item.arrays:
            digest.update(f"{item.kind} {item.grid} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


@dataclass
class _Entry:
    """A generation under its key.

    Attributes:
        abandonment: cancels the generation when it fires; set while there is no reader.
        ended: time on the monotonic clock; None while in flight.
        nbytes: memory of the stored answer.
    """

    generation: LiveGeneration
    fingerprint: bytes
    readers: int = 0
    abandonment: asyncio.TimerHandle | None = None
    ended: float | None = None
    nbytes: int = 0


_Key = tuple[str, str]  # namespace and Idempotency-Key


class KeyedGenerations:
    """In-flight generations and stored answers, by key.

    Args:
        options: `keep_answers_s`, `keep_answers`, `keep_answers_mib` and `abandoned_s`.
        outcomes: counts requests by `outcome`: started, joined, replayed, conflict.
        clock: monotonic seconds.
    """

    def __init__(self, options: ServerOptions, outcomes: Metric, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._outcomes = outcomes
        self._entries: dict[_Key, _Entry] = {}
        self._answers: OrderedDict[_Key, _Entry] = OrderedDict()  # those that have ended, the oldest first
        self._bytes = 0  # of the answers
        self._unread: Counter[str] = Counter()  # generations in flight without a reader, by namespace
        self._evicting = False

    def contains(self, key: str, namespace: str = "") -> bool:
        """Whether this key has a generation or an answer, so that the request needs no room in the queue."""
        return self._find((namespace, key)) is not None

    def attach(
        self, key: str, digest: bytes, start: Callable[[], LiveGeneration], namespace: str = ""
    ) -> tuple[LiveGeneration, Detach]:
        """Add a reader to the generation of this key, which is started if there is none.

        Args:
            digest: `fingerprint` of the request.
            namespace: keys of different namespaces are different keys.

        Returns:
            The generation, and the function to call when its reader detaches.

        Raises:
            KeyReusedError: the key was sent with another request.
            ContractError: as `start`; the key is then not used.
        """
        scoped = (namespace, key)
        entry = self._find(scoped)
        if entry is None:
            entry = self._entries[scoped] = _Entry(start(), digest)
            on_end = partial(self._on_end, asyncio.get_running_loop(), scoped, entry)
            entry.generation.future.add_done_callback(on_end)
            self._outcomes.labels("started").inc()
        elif entry.fingerprint != digest:
            self._outcomes.labels("conflict").inc()
            raise KeyReusedError
        else:
            self._outcomes.labels("joined" if entry.ended is None else "replayed").inc()
        entry.readers += 1
        self._keep_alive(scoped, entry)
        return entry.generation, partial(self._detach, scoped, entry)

    def unread(self, namespace: str, key: str | None = None) -> int:
        """Generations of a namespace that go on without a reader, other than the one of this key."""
        joined = self._entries.get((namespace, key)) if key is not None else None
        return self._unread[namespace] - (joined is not None and joined.abandonment is not None)

    def forget(self, key: str, namespace: str = "") -> None:
        """Cancel an in-flight generation of this key, or drop its stored answer."""
        if (entry := self._entries.get((namespace, key))) is not None:
            self._drop((namespace, key), entry)

    def _detach(self, scoped: _Key, entry: _Entry) -> None:
        entry.readers -= 1
        if entry.readers == 0 and not entry.generation.log.ended:
            loop = asyncio.get_running_loop()
            entry.abandonment = loop.call_later(self._options.abandoned_s, self._drop, scoped, entry)
            self._unread[scoped[0]] += 1

    def _keep_alive(self, scoped: _Key, entry: _Entry) -> None:
        """Stop the abandonment timer, if it runs: there is a reader, or the generation is over."""
        if entry.abandonment is None:
            return
        entry.abandonment.cancel()
        entry.abandonment = None
        self._unread[scoped[0]] -= 1
        if not self._unread[scoped[0]]:
            del self._unread[scoped[0]]

    def _find(self, scoped: _Key) -> _Entry | None:
        if not self._evicting:
            self._evict()
        entry = self._entries.get(scoped)
        if entry is not None and self._expired(entry):
            self._remove(scoped, entry)
            return None
        return entry

    def _drop(self, scoped: _Key, entry: _Entry) -> None:
        self._remove(scoped, entry)
        self._keep_alive(scoped, entry)
        entry.generation.cancel()

    def _remove(self, scoped: _Key, entry: _Entry) -> None:
        if self._entries.get(scoped) is not entry:  # a later generation under the same key
            return
        del self._entries[scoped]
        if self._answers.pop(scoped, None) is not None:
            self._bytes -= entry.nbytes

    def _on_end(self, loop: asyncio.AbstractEventLoop, scoped: _Key, entry: _Entry, _: object) -> None:
        """The future's callback, in the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server stops, and there are no readers
            loop.call_soon_threadsafe(self._keep_answer, scoped, entry)

    def _keep_answer(self, scoped: _Key, entry: _Entry) -> None:
        self._keep_alive(scoped, entry)
        if self._entries.get(scoped) is not entry:
            return
        try:
            result = entry.generation.result
        except BaseException:  # its readers get the error; the next request generates again
            self._remove(scoped, entry)
            return
        entry.ended = self._clock()
        entry.nbytes = (
            _BYTES_PER_ANSWER
            + len(result.generated_ids) * _BYTES_PER_TOKEN
            + entry.generation.log.likely_tokens * _BYTES_PER_LIKELY_TOKEN
            + len(result.text)
        )
        self._answers[scoped] = entry
        self._bytes += entry.nbytes
        if not self._evicting:
            self._evict()

    def _expired(self, entry: _Entry) -> bool:
        return entry.ended is not None and self._clock() - entry.ended > self._options.keep_answers_s

    def _evict(self) -> None:
        """Evict expired answers, then the oldest beyond the limits: a few now, the others when the loop has time.

        An answer that has expired and is still here is not found. In-flight generations stay.
        """
        options = self._options
        for _ in range(_EVICTED_AT_ONCE):
            scoped, oldest = next(iter(self._answers.items()), (("", ""), None))
            fits = len(self._answers) <= options.keep_answers and self._bytes <= options.keep_answers_mib * 2**20
            self._evicting = oldest is not None and (not fits or self._expired(oldest))
            if oldest is None or not self._evicting:
                return
            self._remove(scoped, oldest)
        asyncio.get_running_loop().call_soon(self._evict)
