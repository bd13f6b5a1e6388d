"""What a sampler chose for the rows of a batch, on the device or copied to the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen3vl_edge.server.engines.protocol import Token


@dataclass(frozen=True)
class Picked:
    """The chosen tokens of a batch's rows. Log-probabilities are those before penalties, temperature and truncation.

    Attributes:
        ids: int64 [rows].
        chosen_logprobs: float32 [rows], of the chosen tokens; None if no row asks for log-probabilities.
        top_ids: int64 [rows, k], the likeliest tokens, k the most that a row asks for; None if no row asks.
        top_logprobs: float32 [rows, k]; None if no row asks. Rows that do not ask have zeros in all three.
        undrawn: bool [rows], rows whose probabilities are not numbers, so that nothing can be drawn; None if no
            row is sampled.
    """

    ids: torch.Tensor
    chosen_logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None
    undrawn: torch.Tensor | None = None

    def copied(self) -> Picked:
        """The same in the host's memory.

        From CUDA, into pinned memory and without waiting: the values are there once an event is over that was
        recorded on the current stream after this call.
        """

        def optional(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else _copied(tensor)

        return Picked(
            _copied(self.ids),
            optional(self.chosen_logprobs),
            optional(self.top_ids),
            optional(self.top_logprobs),
            optional(self.undrawn),
        )


def token_of(picked: Picked, row: int, logprobs: int | None) -> Token:
    """The token of one row.

    Args:
        picked: in the host's memory.
        logprobs: the request's number of likeliest tokens; None for no log-probabilities.

    Raises:
        ArithmeticError: the row is sampled, and its probabilities are not numbers.
    """
    if picked.undrawn is not None and picked.undrawn[row]:
        raise ArithmeticError("the model's scores are not finite: no token can be drawn from them")
    chosen = int(picked.ids[row])
    if logprobs is None:
        return Token(chosen)
    assert picked.chosen_logprobs is not None
    assert picked.top_ids is not None
    assert picked.top_logprobs is not None
    ids, values = picked.top_ids[row, :logprobs].tolist(), picked.top_logprobs[row, :logprobs].tolist()
    return Token(chosen, float(picked.chosen_logprobs[row]), tuple(zip(ids, values, strict=True)))


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
