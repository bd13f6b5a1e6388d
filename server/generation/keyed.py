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
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from prometheus_client import Counter

from qwen3vl_edge.contract.errors import KeyReusedError
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.live_generation import Detach, LiveGeneration
from qwen3vl_edge.server.options import ServerOptions

_BYTES_PER_TOKEN = 64  # estimate for the log, the result's ids and its text


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

    def keep_alive(self) -> None:
        """Stop the abandonment timer, if it runs."""
        if self.abandonment is not None:
            self.abandonment.cancel()
            self.abandonment = None


_Key = tuple[str, str]  # namespace and Idempotency-Key


class KeyedGenerations:
    """In-flight generations and stored answers, by key.

    Args:
        options: `keep_answers_s`, `keep_answers`, `keep_answers_mib` and `abandoned_s`.
        outcomes: counts requests by `outcome`: started, joined, replayed, conflict.
    """

    def __init__(self, options: ServerOptions, outcomes: Counter) -> None:
        self._options = options
        self._outcomes = outcomes
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def contains(self, key: str, namespace: str = "") -> bool:
        """Whether this key has a generation or an answer, so that the request needs no room in the queue."""
        self._evict()
        return (namespace, key) in self._entries

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
        self._evict()
        entry = self._entries.get(scoped)
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
        entry.keep_alive()
        return entry.generation, partial(self._detach, scoped, entry)

    def forget(self, key: str, namespace: str = "") -> None:
        """Cancel an in-flight generation of this key, or drop its stored answer."""
        if (entry := self._entries.get((namespace, key))) is not None:
            self._drop((namespace, key), entry)

    def _detach(self, scoped: _Key, entry: _Entry) -> None:
        entry.readers -= 1
        if entry.readers == 0 and not entry.generation.log.ended:
            loop = asyncio.get_running_loop()
            entry.abandonment = loop.call_later(self._options.abandoned_s, self._drop, scoped, entry)

    def _drop(self, scoped: _Key, entry: _Entry) -> None:
        if self._entries.get(scoped) is entry:  # not a later generation under the same key
            del self._entries[scoped]
        entry.keep_alive()
        entry.generation.cancel()

    def _on_end(self, loop: asyncio.AbstractEventLoop, scoped: _Key, entry: _Entry, _: object) -> None:
        """The future's callback, in the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server stops, and there are no readers
            loop.call_soon_threadsafe(self._keep_answer, scoped, entry)

    def _keep_answer(self, scoped: _Key, entry: _Entry) -> None:
        entry.keep_alive()
        if self._entries.get(scoped) is not entry:
            return
        try:
            result = entry.generation.result
        except BaseException:  # its readers get the error; the next request generates again
            del self._entries[scoped]
            return
        entry.ended = time.monotonic()
        entry.nbytes = len(result.generated_ids) * _BYTES_PER_TOKEN + len(result.text)
        self._entries.move_to_end(scoped)
        self._evict()

    def _evict(self) -> None:
        """Evict expired answers, then the oldest beyond the limits. In-flight generations stay."""
        options = self._options
        ended = [(scoped, entry) for scoped, entry in self._entries.items() if entry.ended is not None]
        count, nbytes = len(ended), sum(entry.nbytes for _, entry in ended)
        for scoped, entry in ended:
            expired = time.monotonic() - (entry.ended or 0.0) > options.keep_answers_s
            if not expired and count <= options.keep_answers and nbytes <= options.keep_answers_mib * 2**20:
                return
            del self._entries[scoped]
            count, nbytes = count - 1, nbytes - entry.nbytes
