"""The model that vLLM serves, for request validation and `/readyz`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.wire.request import ModelShape


@dataclass(frozen=True)
class VllmModel:
    """A language model in vLLM's workers.

    Attributes:
        max_positions: most tokens of prompt and answer together, vLLM's `max_model_len`.
        max_medium_tokens: most visual tokens of one picture or clip that vLLM accepts.
        max_logprobs: most likeliest tokens that it returns at a position.
        vision_parameters: parameter count of the checkpoint's encoder.
        workers: counts from each worker's memory, by `WorkerExtension` in `server/engines/vllm/worker.py`.
        settings: vLLM's version, parallel sizes and further arguments, for `/readyz`.
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
        """The `torch.dtype` of the weights; embeddings are cast to it, as in the transformers engine."""
        import torch

        return getattr(torch, self.workers[0]["dtype"])

    @property
    def vision_parameters_loaded(self) -> int:
        """Parameter count of the encoder in all workers together."""
        return sum(int(worker["vision_parameters"]) for worker in self.workers)

    def describe(self) -> dict[str, Any]:
        """Details for `/readyz` and `/v1/models`; parameters as counted in the workers, copies included."""
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
