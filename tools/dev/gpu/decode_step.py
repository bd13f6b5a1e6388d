"""One decode step over a static cache, and the same captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache

ROOM = 256  # tokens beyond the prompt: each run of the step takes one


class DecodeStep:
    """A batch of prompts after their prefill; `run` computes the logits of one more token of each.

    The same token and position each time: what it costs is what the bench is about.
    """

    def __init__(self, model: Any, batch: int, prompt_tokens: int, device: torch.device) -> None:
        self._model, self.device = model, device
        length = prompt_tokens + ROOM
        self._cache = StaticCache(config=model.config.text_config, max_cache_len=length)
        ids = torch.arange(prompt_tokens, device=device)[None].repeat(batch, 1) % 200 + 5
        with torch.inference_mode():
            logits = self._forward(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1)
        self._inputs = {
            "input_ids": logits[:, -1].argmax(-1, keepdim=True).contiguous(),
            "position_ids": torch.full((4, batch, 1), prompt_tokens, device=device),
            "attention_mask": torch.zeros(batch, 1, 1, length, dtype=torch.bool, device=device),
        }
        self._inputs["attention_mask"][..., : prompt_tokens + 1] = True

    def run(self) -> torch.Tensor:
        """Logits [batch, 1, vocabulary]."""
        return self._forward(**self._inputs)

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
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph.replay
