"""vLLM's scheduler statistics, for `EngineStats`."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class StatLogger(StatLoggerBase):  # type: ignore[misc]
    """Called by vLLM after each scheduler step, in the engine's event loop; its attributes are read from any thread.

    vLLM calls it as a factory with its configuration; with several data-parallel ranks it would create one for each.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.step_rows = 0
        self.kv_tokens = 0
        self._capacity = 0

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> StatLogger:
        return self

    def set_capacity(self, tokens: int) -> None:
        """Set how many tokens the KV cache holds."""
        self._capacity = tokens

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is None:
            return
        self.kv_tokens = round(scheduler_stats.kv_cache_usage * self._capacity)
        if scheduler_stats.num_running_reqs:
            self.steps += 1
            self.step_rows += scheduler_stats.num_running_reqs

    def log_engine_initialized(self) -> None:
        pass
