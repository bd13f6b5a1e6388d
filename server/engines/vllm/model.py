"""The model that vLLM serves, as requests and `/readyz` see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.wire.request import ModelShape


@dataclass(frozen=True)
class VllmModel:
    """A language model in vLLM's workers.

    Attributes:
        max_positions: tokens of prompt and answer together, vLLM's `max_model_len`.
        max_medium_tokens: visual tokens of one picture or clip that vLLM takes.
        max_logprobs: likeliest tokens that it names at a place.
        vision_parameters: of the encoder, that the checkpoint holds.
        workers: what each worker counted in its memory, `WorkerExtension` in `server/engines/vllm/worker.py`.
        settings: vLLM's version, parallel sizes and what was set beside, as `/readyz` shows them.
    """

    name: str
    tokenizer: Any
    shape: ModelShape
    end_ids: tuple[int, ...]
    vision_start_id: int
    vision_end_id: int
    max_positions: int
    max_medium_tokens: int
    max_logprobs: int
    vision_parameters: int
    workers: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    @property
    def torch_dtype(self) -> Any:
        """The `torch.dtype` of the weights; embeddings are cast to it, as the other engine does."""
        import torch

        return getattr(torch, self.workers[0]["dtype"])

    @property
    def vision_parameters_loaded(self) -> int:
        """Of the encoder, in all workers together."""
        return sum(int(worker["vision_parameters"]) for worker in self.workers)

    def describe(self) -> dict[str, Any]:
        """Facts for `/readyz` and `/v1/models`; parameters as the workers counted them, copies included."""
        return {
            "engine": "vllm",
            **self.settings,
            "parameters": sum(int(worker["parameters"]) for worker in self.workers),
            "vision_parameters_not_loaded": self.vision_parameters if not self.vision_parameters_loaded else 0,
            "vision_parameters_loaded": self.vision_parameters_loaded,
            "workers": len(self.workers),
            "device": self.workers[0]["device"],
            "dtype": self.workers[0]["dtype"],
        }
