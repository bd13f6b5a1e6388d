"""One decode step over a static cache, and the same captured in a CUDA graph: what an engine's step is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache

from qwen3vl_edge.tools.dev.load.engine.batch import Batch
from qwen3vl_edge.tools.dev.load.figures import Run, Sample

WARM_RUNS = 3  # before a capture, as torch.cuda.graph's documentation asks


class DecodeStep:
    """A batch of prompts after their prefill; `run` computes the logits of one more token of each.

    The same token and position each time, and the mask of the answer's middle: what it costs is what the bench is
    about. Its keys go one column further each time, `rewind` takes them back.
    """

    def __init__(self, model: Any, batch: Batch, device: torch.device) -> None:
        self._model, self.device = model, device
        length = batch.prompt_tokens + batch.new_tokens + WARM_RUNS + 1
        self._cache = StaticCache(config=model.config.text_config, max_cache_len=length)
        ids = torch.from_numpy(batch.ids()).to(device)
        with torch.inference_mode():
            logits = self._forward(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1)
        middle = batch.prompt_tokens + batch.new_tokens // 2
        self._inputs = {
            "input_ids": logits[:, -1].argmax(-1, keepdim=True).contiguous(),
            "position_ids": torch.full((4, batch.rows, 1), middle, device=device),
            "attention_mask": torch.zeros(batch.rows, 1, 1, length, dtype=torch.bool, device=device),
        }
        self._inputs["attention_mask"][..., : middle + 1] = True

    def run(self) -> torch.Tensor:
        """Logits [batch, 1, vocabulary]."""
        return self._forward(**self._inputs)

    def rewind(self, steps: int) -> None:
        """Take back so many runs."""
        self._cache.crop(-steps)

    def _forward(self, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self._model(use_cache=True, cache=self._cache, **inputs).logits
        return logits


def captured(step: DecodeStep) -> Callable[[], object]:
    """The step as one launch; on a CPU the step itself."""
    if step.device.type == "cpu":
        return step.run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    step.rewind(WARM_RUNS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph.replay


class StepByHand:
    """The step alone, `captured` or eager: nothing chooses a token, and nothing leaves the device."""

    prefills, in_process = False, True

    def __init__(self, model: Any, device: torch.device, capture: bool) -> None:
        self.name = f"{'captured' if capture else 'eager'} step by hand"
        self._model, self._device, self._capture = model, device, capture
        self._step: DecodeStep | None = None
        self._launch: Callable[[], object] = lambda: None

    def prepare(self, batch: Batch) -> None:
        self._step = DecodeStep(self._model, batch, self._device)
        with torch.inference_mode():
            self._launch = captured(self._step) if self._capture else self._step.run

    def run(self, batch: Batch) -> Run:
        assert self._step is not None
        with torch.inference_mode():
            times = _times(self._launch, batch.new_tokens, self._device)
            self._step.rewind(batch.new_tokens)
        return Run((Sample(0.0, tuple(times)),) * batch.rows, times[-1])

    def close(self) -> None:
        self._step, self._launch = None, lambda: None


def _times(launch: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """When each of `count` launches had ended, on the device's own clock: seconds since the first began."""
    if device.type == "cpu":
        began = time.perf_counter()
        return [(launch(), time.perf_counter() - began)[1] for _ in range(count)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        launch()
        event.record()
    torch.cuda.synchronize()
    return [float(events[0].elapsed_time(event)) / 1e3 for event in events[1:]]
