"""Readiness: the engine, once it is loaded and warm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3vl_edge.contract.errors import ServerUnavailableError

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine, EngineStats
    from qwen3vl_edge.server.openai.pixels import PixelEncoder


class Readiness:
    """Holds the engine once it is loaded and warm.

    Written once by the loading thread; read by the event loop.

    Args:
        engine_reason: why this engine serves, for `/readyz`; empty if nothing was chosen.
    """

    def __init__(self, engine_reason: str = "") -> None:
        self.engine_reason = engine_reason
        self._engine: Engine | None = None
        self.failure: BaseException | None = None
        self.pixels: PixelEncoder | None = None  # the vision tower, with --allow-pixels

    def set(self, engine: Engine, pixels: PixelEncoder | None = None) -> None:
        self.pixels = pixels
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ServerUnavailableError: it is still loading.
        """
        if self._engine is None:
            raise ServerUnavailableError("the model is still loading", remedy="Try again when /readyz answers 200.")
        return self._engine

    def working_engine(self, stall_s: float) -> Engine:
        """The engine, if it is neither stuck nor dead.

        Raises:
            ServerUnavailableError: it is still loading, has died, or its step takes longer than `stall_s` seconds.
        """
        self.engine.stats().check(stall_s)
        return self.engine

    def stats(self) -> EngineStats | None:
        """The engine's statistics, None while it loads."""
        return None if self._engine is None else self._engine.stats()

    @property
    def loaded(self) -> bool:
        return self._engine is not None
