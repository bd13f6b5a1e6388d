"""The next tokens of all rows of a batch at once, each as transformers' `generate` would choose it for its row alone.

All is done on the device and nothing waits for it: parameters are uploaded when rows change, and a row's random numbers
come from its own generator, so the same seed gives the same answer, whatever else is in the batch.

A draw is `torch.multinomial`'s for one sample (`multinomial_out` in aten/src/ATen/native/Distributions.cpp): the
largest of p / q, with q exponential noise. So only the noise is made row by row, everything else for the batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.transformers.sampling.picked import Picked
from qwen3vl_edge.server.engines.transformers.sampling.score_changes import (
    ScoreChanges,
    TokenCounts,
    has_penalties,
    score_changes,
)
from qwen3vl_edge.server.engines.transformers.sampling.truncation import Truncation, truncation
from qwen3vl_edge.server.engines.transformers.sampling.upload import upload


@dataclass(frozen=True)
class _Row:
    """A request's part: its place in the counts if it has penalties, its generator if it is sampled."""

    sampling: Sampling
    logprobs: int | None
    place: int | None
    generator: torch.Generator | None


@dataclass(frozen=True)
class _Draw:
    """The sampled rows: `rows` int64 [n], None for all rows."""

    rows: torch.Tensor | None
    truncation: Truncation
    generators: tuple[torch.Generator, ...]

    def pick(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [n], and whether they could not be drawn [n], from the changed scores of all rows."""
        own = scores if self.rows is None else scores.index_select(0, self.rows)
        probabilities = self.truncation.probabilities(own)
        noise = torch.empty_like(probabilities)
        for row, generator in enumerate(self.generators):
            noise[row].exponential_(1, generator=generator)
        ids = (probabilities / noise).argmax(dim=-1)
        return ids, probabilities.gather(1, ids[:, None])[:, 0].isnan()  # argmax finds a NaN if there is one


@dataclass(frozen=True)
class _Asking:
    """The rows that ask for log-probabilities: `rows` int64 [n], and the most likeliest tokens of any."""

    rows: torch.Tensor
    most: int


@dataclass(frozen=True)
class _Plan:
    """What to do for some rows, on the device until they change."""

    rows: int
    changes: ScoreChanges | None
    draw: _Draw | None
    asking: _Asking | None


class BatchSampler:
    """Chooses tokens for the rows of a batch, in the order in which they were added.

    Args:
        device: device of the logits.
        vocabulary: their number of columns.
    """

    def __init__(self, device: torch.device, vocabulary: int) -> None:
        self._device = device
        self._vocabulary = vocabulary
        self._rows: list[_Row | None] = []
        self._counts = TokenCounts(device, vocabulary)
        self._plans: dict[int, _Plan] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def add(self, request: GenerateRequest) -> None:
        """Append a row, of which no token has been chosen yet."""
        sampling, place = request.sampling, None
        if has_penalties(sampling):
            place = self._counts.take(request.input_ids)
        generator = _generator(sampling, self._device) if sampling.do_sample else None
        self._rows.append(_Row(sampling, request.logprobs, place, generator))
        self._plans.clear()

    def move(self, source: int, target: int) -> None:
        """Put the row `source` in the place of `target`, which has left; `source` is then vacant, for `pop`."""
        if source == target:
            return
        self._leave(target)
        self._rows[target], self._rows[source] = self._rows[source], None

    def pop(self) -> None:
        """Remove the last row, or the vacancy that it left."""
        self._leave(len(self._rows) - 1)
        self._rows.pop()

    @torch.inference_mode()
    def pick(self, logits: torch.Tensor, first: int = 0) -> Picked:
        """Choose the next token of each row, and count it where penalties need it. Nothing waits for the device.

        Args:
            logits: [at least rows, vocabulary], of any floating dtype; those beyond the rows are ignored.
            first: choose only for this row and those after it, of which `logits` are.
        """
        plan = self._plans.get(first) or self._plans.setdefault(first, self._plan(first))
        logits = logits[: plan.rows]
        if plan.changes is None and plan.draw is None and plan.asking is None:
            return Picked(logits.argmax(dim=-1))
        raw = logits.float()
        scores = raw if plan.changes is None else plan.changes.apply(raw, self._counts)
        ids, undrawn = _chosen(scores, plan.draw)
        if plan.changes is not None:
            plan.changes.record(ids, self._counts)
        return Picked(ids, *_logprobs(raw, ids, plan.asking), undrawn=undrawn)

    def _leave(self, index: int) -> None:
        row = self._rows[index]
        if row is not None and row.place is not None:
            self._counts.give_back(row.place)
        self._rows[index] = None
        self._plans.clear()

    def _plan(self, first: int) -> _Plan:
        rows = [row for row in self._rows[first:] if row is not None]
        assert len(rows) == len(self._rows) - first, "a row has left, and nothing took its place"
        changes = score_changes([(row.sampling, row.place) for row in rows], self._vocabulary, self._device)
        asked = [(index, row.logprobs) for index, row in enumerate(rows) if row.logprobs is not None]
        asking = None
        if asked:
            indices = upload([index for index, _ in asked], torch.int64, self._device)
            asking = _Asking(indices, min(max(count for _, count in asked), self._vocabulary))
        return _Plan(len(rows), changes, self._draw(rows), asking)

    def _draw(self, rows: Sequence[_Row]) -> _Draw | None:
        drawn = [(index, row.sampling, row.generator) for index, row in enumerate(rows) if row.generator is not None]
        if not drawn:
            return None
        every = len(drawn) == len(rows)
        return _Draw(
            None if every else upload([index for index, _, _ in drawn], torch.int64, self._device),
            truncation([sampling for _, sampling, _ in drawn], self._vocabulary, self._device),
            tuple(generator for _, _, generator in drawn),
        )


def _chosen(scores: torch.Tensor, draw: _Draw | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Ids [rows], and which could not be drawn [rows], None if none is drawn."""
    if draw is None:
        return scores.argmax(dim=-1), None
    drawn, undrawn = draw.pick(scores)
    if draw.rows is None:
        return drawn, undrawn
    greedy = scores.argmax(dim=-1)
    none = torch.zeros_like(greedy, dtype=torch.bool)
    return greedy.index_copy(0, draw.rows, drawn), none.index_copy(0, draw.rows, undrawn)


def _logprobs(
    raw: torch.Tensor, ids: torch.Tensor, asking: _Asking | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Of the chosen tokens [rows]; ids and log-probabilities of the likeliest, [rows, k]."""
    if asking is None:
        return None, None, None
    logprobs = raw.index_select(0, asking.rows).log_softmax(dim=-1)
    chosen = logprobs.gather(1, ids.index_select(0, asking.rows)[:, None])[:, 0]
    values, tokens = logprobs.topk(asking.most)
    rows = len(raw)
    return (
        chosen.new_zeros(rows).index_copy(0, asking.rows, chosen),
        tokens.new_zeros(rows, asking.most).index_copy(0, asking.rows, tokens),
        values.new_zeros(rows, asking.most).index_copy(0, asking.rows, values),
    )


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator:
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(8), "little") >> 1
    return torch.Generator(device).manual_seed(seed)
