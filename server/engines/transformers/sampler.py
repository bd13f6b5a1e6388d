"""The next token of one request: a batch of one row."""

from __future__ import annotations

import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.transformers.sampling.batch_sampler import BatchSampler
from qwen3vl_edge.server.engines.transformers.sampling.picked import token_of


class Sampler:
    """Chooses tokens for one request, whose earlier tokens it knows.

    Args:
        request: its sampling, and its prompt for the repetition penalty.
        device: device of the logits.
    """

    def __init__(self, request: GenerateRequest, device: torch.device) -> None:
        self._request = request
        self._device = device
        self._row: BatchSampler | None = None

    def pick(self, logits: torch.Tensor, ids: list[int]) -> Token:
        """Choose from logits [vocabulary] after the tokens `ids` of the answer, which it chose itself."""
        if self._row is None:
            assert not ids
            self._row = BatchSampler(self._device, logits.numel())
            self._row.add(self._request)
        return token_of(self._row.pick(logits[None]).copied(), 0, self._request.logprobs)
