"""What one server has been sent, as far as this daemon remembers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_HASHES = 4096  # some 100 bytes each; a server with room for more pictures is sent the oldest again


class SentHashes:
    """Hashes of embeddings, the longest unused first to be forgotten. Used from the event loop alone."""

    def __init__(self, limit: int = MAX_HASHES) -> None:
        self._limit = limit
        self._hashes: OrderedDict[str, None] = OrderedDict()

    def known(self, names: Iterable[str]) -> set[str]:
        """Those that were sent."""
        return {name for name in names if name in self._hashes}

    def add(self, names: Iterable[str]) -> None:
        """The server has them now."""
        for name in names:
            self._hashes[name] = None
            self._hashes.move_to_end(name)
        while len(self._hashes) > self._limit:
            self._hashes.popitem(last=False)

    def forget(self, names: Iterable[str]) -> None:
        """The server has them no longer."""
        for name in names:
            self._hashes.pop(name, None)
