"""transformers' own `generate` on the same model: a batch of prompts from start to end."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.tools.dev.load.engine.batch import Batch
from qwen3vl_edge.tools.dev.load.figures import Run, Sample
from qwen3vl_edge.tools.parity.greedy import greedy_config

DYNAMIC, STATIC, COMPILED = "generate", "generate, static cache", "generate, static cache, compiled"


class Generate:
    """`generate` with a dynamic cache, a static one, or a static one and a compiled step.

    A streamer tells when tokens come: on a GPU the host waits for each, as any server has to.

    Args:
        name: DYNAMIC, STATIC or COMPILED.
    """

    prefills = in_process = True

    def __init__(self, name: str, loaded: LoadedModel) -> None:
        self.name, self._loaded = name, loaded

    def prepare(self, batch: Batch) -> None:
        """The first run makes what there is to make."""

    @torch.inference_mode()
    def run(self, batch: Batch) -> Run:
        loaded = self._loaded
        config = greedy_config(loaded.end_ids, batch.new_tokens)
        config.min_new_tokens = batch.new_tokens
        if self.name != DYNAMIC:
            # transformers compiles the step over a static cache on a GPU, and never on a CPU.
            config.cache_implementation, config.disable_compile = "static", self.name != COMPILED
        clock = _Clock(loaded.device)
        ids = torch.from_numpy(batch.ids()).to(loaded.device)
        clock.start()
        loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=clock
        )
        seconds = clock.now()
        return Run((Sample(0.0, tuple(clock.times)),) * batch.rows, seconds)

    def close(self) -> None:
        """Nothing is kept but the model."""


class _Clock(BaseStreamer):  # type: ignore[misc]
    """Times of the tokens; the first call hands over the prompts."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._began, self._calls = device, 0.0, 0
        self.times: list[float] = []

    def start(self) -> None:
        self._began += self.now()

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._began

    def put(self, value: Any) -> None:
        if self._calls:
            self.times.append(self.now())
        self._calls += 1

    def end(self) -> None:
        """Nothing to do."""
