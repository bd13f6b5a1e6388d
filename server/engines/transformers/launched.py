"""Tokens on their way from the device: chosen there, and copied to the host while the next step runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.transformers.sampling.picked import Picked, token_of
from qwen3vl_edge.server.engines.transformers.sequence import Sequence


class Launched:
    """The tokens of one step, for the requests that were in the batch when it started.

    Args:
        sequences: one per row.
        picked: on the device.
    """

    def __init__(self, sequences: list[Sequence], picked: Picked) -> None:
        self._sequences = sequences
        self._picked = picked.copied()
        self._arrived = torch.cuda.Event() if picked.ids.is_cuda else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(picked.ids.device))
        for sequence in sequences:
            sequence.pending += 1

    def tokens(self) -> Iterator[tuple[Sequence, Token | ArithmeticError]]:
        """Each request that still needs a token, and its token, or why none could be drawn; waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        for row, sequence in enumerate(self._sequences):
            sequence.pending -= 1
            if sequence.leaves:
                continue
            try:
                yield sequence, token_of(self._picked, row, sequence.request.logprobs)
            except ArithmeticError as error:
                yield sequence, error
