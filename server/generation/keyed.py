"""Requests with an `Idempotency-Key`: generated once, answered as often as they are sent.

A key joins the generation that runs under it, or gets the answer that is kept. While nobody follows, a keyed
generation goes on: a lost connection is what the key is there for. If nobody has come back after `abandoned_s` it is
cancelled: nobody may want it any more. What failed or was cancelled is not kept.

All of it lives in the event loop's thread, and in memory: after a restart the next try is generated anew.
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
from qwen3vl_edge.server.generation.live_generation import Leave, LiveGeneration
from qwen3vl_edge.server.options import ServerOptions

_BYTES_PER_TOKEN = 64  # of the log, the result's ids and its text


def fingerprint(request: GenerateRequest) -> bytes:
    """sha256 of what decides the answer: ids, grids, tensors and sampling.

    Neither `stream` nor `request_id`, which change how and to whom it is told, nor how the tensors travelled.
    """
    digest = hashlib.sha256(json.dumps(request.sampling.to_dict(), sort_keys=True).encode())
    digest.update(np.ascontiguousarray(request.input_ids).data)
    for item in request.media:
        for array in item.arrays:
            digest.update(f"{item.kind} {item.grid} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


@dataclass
class _Kept:
    """A generation under its key; `ended` is when, on the monotonic clock."""

    running: LiveGeneration
    fingerprint: bytes
    readers: int = 0
    timer: asyncio.TimerHandle | None = None
    ended: float | None = None
    size: int = 0


class KeyedGenerations:
    """Generations under way and answers kept, by key.

    Args:
        options: how long, how many and how much is kept.
        outcomes: counts requests by `outcome`: started, joined, replayed, conflict.
    """

    def __init__(self, options: ServerOptions, outcomes: Counter) -> None:
        self._options = options
        self._outcomes = outcomes
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def knows(self, key: str, namespace: str = "") -> bool:
        """Whether a request with this key needs no room in the queue."""
        self._make_room()
        return (namespace, key) in self._kept

    def follow(
        self, key: str, digest: bytes, start: Callable[[], LiveGeneration], namespace: str = ""
    ) -> tuple[LiveGeneration, Leave]:
        """The generation under this key, started if there is none, and what to call when its reader goes.

        Args:
            digest: `fingerprint` of the request.
            namespace: keys of different namespaces are different keys.

        Raises:
            KeyReusedError: the key was sent with another request.
            ContractError: as `start`; then nothing is kept.
        """
        place = (namespace, key)
        self._make_room()
        kept = self._kept.get(place)
        if kept is None:
            kept = self._kept[place] = _Kept(start(), digest)
            kept.running.future.add_done_callback(partial(self._ended, asyncio.get_running_loop(), place, kept))
            self._outcomes.labels("started").inc()
        elif kept.fingerprint != digest:
            self._outcomes.labels("conflict").inc()
            raise KeyReusedError
        else:
            self._outcomes.labels("joined" if kept.ended is None else "replayed").inc()
        kept.readers += 1
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        return kept.running, partial(self._leave, place, kept)

    def forget(self, key: str, namespace: str = "") -> None:
        """The sender needs the answer no more: a generation under way is cancelled, a kept answer dropped."""
        if (kept := self._kept.get((namespace, key))) is not None:
            self._drop((namespace, key), kept)

    def _leave(self, place: tuple[str, str], kept: _Kept) -> None:
        kept.readers -= 1
        if kept.readers == 0 and not kept.running.log.ended:
            loop = asyncio.get_running_loop()
            kept.timer = loop.call_later(self._options.abandoned_s, self._drop, place, kept)

    def _drop(self, place: tuple[str, str], kept: _Kept) -> None:
        if self._kept.get(place) is kept:  # not a later generation under the same key
            del self._kept[place]
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        kept.running.cancel()

    def _ended(self, loop: asyncio.AbstractEventLoop, place: tuple[str, str], kept: _Kept, _: object) -> None:
        """The future's callback, in the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server stops, and nobody asks any more
            loop.call_soon_threadsafe(self._settle, place, kept)

    def _settle(self, place: tuple[str, str], kept: _Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        if self._kept.get(place) is not kept:
            return
        try:
            result = kept.running.result
        except BaseException:  # its readers are told; the next try runs anew
            del self._kept[place]
            return
        kept.ended = time.monotonic()
        kept.size = len(result.generated_ids) * _BYTES_PER_TOKEN + len(result.text)
        self._kept.move_to_end(place)
        self._make_room()

    def _make_room(self) -> None:
        """Drop what is too old, and the oldest of what is too much. Generations under way stay."""
        options = self._options
        ended = [(place, kept) for place, kept in self._kept.items() if kept.ended is not None]
        count, size = len(ended), sum(kept.size for _, kept in ended)
        for place, kept in ended:
            old = time.monotonic() - (kept.ended or 0.0) > options.keep_answers_s
            if not old and count <= options.keep_answers and size <= options.keep_answers_mib * 2**20:
                return
            del self._kept[place]
            count, size = count - 1, size - kept.size
