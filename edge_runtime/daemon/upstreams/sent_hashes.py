"""The hashes of embeddings that this daemon has sent to one server."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_HASHES = 4096  # some 100 bytes each; a server with room for more pictures is sent the oldest again


class SentHashes:
    """Hashes of embeddings, evicted least recently used first. Used from the event loop only."""

    def __init__(self, limit: int = MAX_HASHES) -> None:
        self._limit = limit
        self._hashes: OrderedDict[str, None] = OrderedDict()

    def known(self, names: Iterable[str]) -> set[str]:
        """Those that were sent."""
        return {name for name in names if name in self._hashes}

    def add(self, names: Iterable[str]) -> None:
        """Add hashes that the server stores now."""
        for name in names:
            self._hashes[name] = None
            self._hashes.move_to_end(name)
        while len(self._hashes) > self._limit:
            self._hashes.popitem(last=False)

    def forget(self, names: Iterable[str]) -> None:
        """Remove hashes that the server no longer stores."""
        for name in names:
            self._hashes.pop(name, None)
