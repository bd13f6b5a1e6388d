"""Biases and penalties of a batch's scores, in vLLM's order: logit bias, repetition, frequency, presence.

Sources: `Sampler.apply_logits_processors` in vllm/v1/sample/sampler.py and `apply_penalties` in
vllm/model_executor/layers/utils.py (0.32); repetition as transformers' `RepetitionPenaltyLogitsProcessor`, which
divides where vLLM multiplies by the reciprocal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.server.engines.transformers.sampling.upload import upload


class TokenCounts:
    """Which tokens each prompt has and how often each answer has each token, on the device.

    A place of a few bytes per token of the vocabulary is taken only for rows that have penalties.
    """

    def __init__(self, device: torch.device, vocabulary: int) -> None:
        self._device = device
        self._vocabulary = vocabulary
        self._answers = torch.zeros(0, vocabulary, device=device)  # float32 counts exactly up to 16,777,216
        self._prompts = torch.zeros(0, vocabulary, dtype=torch.bool, device=device)
        self._free: list[int] = []

    def take(self, prompt: NDArray[np.int64]) -> int:
        """A place for an answer that is still empty."""
        if not self._free:
            self._grow()
        place = self._free.pop()
        known = np.unique(prompt)
        ids = upload(known[known < self._vocabulary], torch.int64, self._device)
        self._answers[place].zero_()
        self._prompts[place].zero_().index_fill_(0, ids, True)
        return place

    def give_back(self, place: int) -> None:
        self._free.append(place)

    def record(self, places: torch.Tensor, ids: torch.Tensor) -> None:
        """Count one more token in each of `places` [n], which are different ones: `ids` [n]."""
        self._answers.view(-1).index_add_(0, places * self._vocabulary + ids, torch.ones_like(ids, dtype=torch.float32))

    def answers(self, places: torch.Tensor) -> torch.Tensor:
        """How often the answers have each token, float32 [n, vocabulary]."""
        return self._answers.index_select(0, places)

    def prompts(self, places: torch.Tensor) -> torch.Tensor:
        """Whether the prompts have each token, bool [n, vocabulary]."""
        return self._prompts.index_select(0, places)

    def _grow(self) -> None:
        held = len(self._answers)
        more = max(held, 1)
        self._answers = torch.cat([self._answers, self._answers.new_zeros(more, self._vocabulary)])
        self._prompts = torch.cat([self._prompts, self._prompts.new_zeros(more, self._vocabulary)])
        self._free.extend(range(held, held + more))


@dataclass(frozen=True)
class ScoreChanges:
    """The biases and penalties of a batch's rows, on the device; None where no row has one.

    Attributes:
        bias_at: int64 [biases], row · vocabulary + token id, each once.
        biases: float32 [biases].
        rows: int64 [n], those that have penalties.
        places: int64 [n], of `TokenCounts`.
        repetition, frequency, presence: float32 [n, 1].
    """

    bias_at: torch.Tensor | None
    biases: torch.Tensor | None
    rows: torch.Tensor | None
    places: torch.Tensor | None
    repetition: torch.Tensor | None
    frequency: torch.Tensor | None
    presence: torch.Tensor | None

    def apply(self, scores: torch.Tensor, counts: TokenCounts) -> torch.Tensor:
        """The changed scores of float32 `scores` [rows, vocabulary], which stay as they are."""
        if self.bias_at is not None:
            assert self.biases is not None
            scores = scores.reshape(-1).index_add(0, self.bias_at, self.biases).view_as(scores)
        if self.rows is None:
            return scores
        assert self.places is not None
        changed = scores.index_select(0, self.rows)
        answers = counts.answers(self.places)
        if self.repetition is not None:
            penalised = torch.where(changed < 0, changed * self.repetition, changed / self.repetition)
            changed = torch.where(counts.prompts(self.places) | (answers > 0), penalised, changed)
        if self.frequency is not None:
            changed = changed - self.frequency * answers
        if self.presence is not None:
            changed = changed - self.presence * (answers > 0)
        return scores.index_copy(0, self.rows, changed)

    def record(self, ids: torch.Tensor, counts: TokenCounts) -> None:
        """Count the chosen `ids` [rows] where penalties need them."""
        if self.rows is not None:
            assert self.places is not None
            counts.record(self.places, ids.index_select(0, self.rows))


def has_penalties(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1.0 or bool(sampling.frequency_penalty or sampling.presence_penalty)


def score_changes(
    rows: Sequence[tuple[Sampling, int | None]], vocabulary: int, device: torch.device
) -> ScoreChanges | None:
    """The changes of rows with their places in `TokenCounts`; None where no row has any."""
    biased = [
        (row * vocabulary + token, bias)
        for row, (sampling, _) in enumerate(rows)
        for token, bias in sampling.logit_bias
        if token < vocabulary
    ]
    penalised = [(row, sampling, place) for row, (sampling, place) in enumerate(rows) if place is not None]
    if not biased and not penalised:
        return None

    def column(name: str, without: float) -> torch.Tensor | None:
        values = [getattr(sampling, name) for _, sampling, _ in penalised]
        return None if all(value == without for value in values) else upload(values, torch.float32, device)[:, None]

    return ScoreChanges(
        bias_at=upload([at for at, _ in biased], torch.int64, device) if biased else None,
        biases=upload([bias for _, bias in biased], torch.float32, device) if biased else None,
        rows=upload([row for row, _, _ in penalised], torch.int64, device) if penalised else None,
        places=upload([place for _, _, place in penalised], torch.int64, device) if penalised else None,
        repetition=column("repetition_penalty", 1.0),
        frequency=column("frequency_penalty", 0.0),
        presence=column("presence_penalty", 0.0),
    )
