"""Temperature, top-k, top-p and min-p of all sampled rows at once, each with its own parameters.

Every step is transformers' (generation/logits_process.py: `TemperatureLogitsWarper`, `TopKLogitsWarper`,
`TopPLogitsWarper`, `MinPLogitsWarper`, in this order), with a column of thresholds in place of one number; a row
without a parameter has the value that removes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.server.engines.transformers.sampling.upload import upload


@dataclass(frozen=True)
class Truncation:
    """Parameters of sampled rows, on the device, each [rows, 1]; None where no row has one.

    Attributes:
        temperature: float32.
        top_k_index: int64, k - 1; 0 for a row without top-k.
        top_k_off: bool, rows without top-k.
        largest_k: of all rows.
        tail: float32, 1 - top_p, the probability that is removed; below 0 for a row without top-p.
        min_p: float32; 0 for a row without.
    """

    temperature: torch.Tensor | None
    top_k_index: torch.Tensor | None
    top_k_off: torch.Tensor | None
    largest_k: int
    tail: torch.Tensor | None
    min_p: torch.Tensor | None

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """What to draw from, float32 [rows, vocabulary], of float32 scores."""
        if self.temperature is not None:
            scores = scores / self.temperature
        if self.top_k_index is not None:
            assert self.top_k_off is not None
            kth = scores.topk(self.largest_k).values.gather(1, self.top_k_index)
            scores = scores.masked_fill(scores < kth.masked_fill(self.top_k_off, -math.inf), -math.inf)
        if self.tail is not None:
            ordered, places = scores.sort(descending=False)
            removed = ordered.softmax(dim=-1).cumsum(dim=-1) <= self.tail
            removed[:, -1:] = False
            scores = scores.masked_fill(removed.scatter(1, places, removed), -math.inf)
        if self.min_p is not None:
            # transformers also protects the likeliest token, which is never below min_p <= 1 times itself
            probabilities = scores.softmax(dim=-1)
            below = probabilities < self.min_p * probabilities.amax(dim=-1, keepdim=True)
            scores = scores.masked_fill(below, -math.inf)
        return scores.softmax(dim=-1)


def truncation(rows: Sequence[Sampling], vocabulary: int, device: torch.device) -> Truncation:
    """The parameters of sampled rows."""

    def column(values: list[float], dtype: torch.dtype, off: float | None) -> torch.Tensor | None:
        return None if all(value == off for value in values) else upload(values, dtype, device)[:, None]

    ks = [min(sampling.top_k, vocabulary) for sampling in rows]
    return Truncation(
        temperature=column([sampling.temperature for sampling in rows], torch.float32, 1.0),
        top_k_index=upload([max(k - 1, 0) for k in ks], torch.int64, device)[:, None] if any(ks) else None,
        top_k_off=upload([k == 0 for k in ks], torch.bool, device)[:, None] if any(ks) else None,
        largest_k=max(ks),
        tail=column([1 - sampling.top_p if sampling.top_p < 1.0 else -1.0 for sampling in rows], torch.float32, -1.0),
        min_p=column([sampling.min_p or 0.0 for sampling in rows], torch.float32, 0.0),
    )
