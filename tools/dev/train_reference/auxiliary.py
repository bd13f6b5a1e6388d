"""Losses beside the answers' own, dropped before release: what each merged token shows, and where names look."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qwen3vl_edge.tools.dev.train_reference.batches import Vocabulary
from qwen3vl_edge.tools.dev.train_reference.model import Attended
from qwen3vl_edge.tools.dev.train_reference.scenes import COLOURS, SHAPES
from qwen3vl_edge.tools.dev.train_reference.tensors import TensorBatch

DIGITS = tuple("0123456789")
BINS = 12
LOOKING_HEADS = [0, 2]
"""One of each key-value group, so that two different values are read."""


class AuxiliaryHeads(nn.Module):
    """Reads each factor from one output of the encoder through the language model's own word embeddings.

    Level 0 names the colour, level 1 the shape, level 2 the digit; the merged embedding tells whether a centre
    lies in the cell, and where in the picture the centre of what covers it is. No factor is asked of two outputs,
    so that none can be lost unnoticed.
    """

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.words = [vocabulary.words(tuple(COLOURS)), vocabulary.words(SHAPES), vocabulary.words(DIGITS)]
        self.nothing = nn.Parameter(torch.randn(3, width) * 0.02)
        self.scale = nn.Parameter(torch.full((3,), 10.0))
        self.centre = nn.Linear(width, 2)
        self.place = nn.Linear(width, 2 * BINS)
        self.coordinates = nn.Linear(width, 2)
        self.sides = [vocabulary.words(("left", "right")), vocabulary.words(("top", "bottom"))]
        self.pictures = vocabulary.words(("first", "second"))
        self.side_scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, output: Any, embeddings: torch.Tensor, batch: TensorBatch) -> tuple[torch.Tensor, list[float]]:
        """Sum of the losses, and the accuracy of each on cells that hold something."""
        losses: list[torch.Tensor] = []
        accuracies: list[float] = []
        targets = (batch.colour, batch.shape, batch.digit)
        for index, target in enumerate(targets):
            words = torch.cat([self.nothing[index][None], embeddings[self.words[index]]])
            features = F.normalize(output.deepstack_features[index].float(), dim=-1)
            logits = features @ F.normalize(words, dim=-1).T * self.scale[index]
            losses.append(_balanced(logits, target, accuracies))
        logits = self.centre(output.pooler_output.float())
        losses.append(_balanced(logits, batch.centre, accuracies))
        # The losses above see directions alone. Without this the outputs grow apart in size (one level reached
        # 239 beside embeddings of 38), and after RMSNorm the small one, which holds the place, is lost.
        outputs = [output.pooler_output, *output.deepstack_features]
        sizes = [value.float().pow(2).mean(-1).add(1e-6).sqrt() for value in outputs]
        losses.append(torch.stack([(size - 1).pow(2).mean() for size in sizes]).sum())
        losses.append(0.4 * self._places(output.pooler_output.float(), embeddings, batch))
        return torch.stack(losses).sum(), accuracies

    def _places(self, features: torch.Tensor, embeddings: torch.Tensor, batch: TensorBatch) -> torch.Tensor:
        """Where what covers each token lies: as a coordinate, in bins, and as the words left, right, top, bottom."""
        places = batch.place
        bins = self.place(features)
        loss = 20.0 * F.mse_loss(self.coordinates(features), places)
        for index in range(2):
            place = places[:, index]
            loss = loss + 0.5 * F.cross_entropy(
                bins[:, BINS * index : BINS * (index + 1)], (place * BINS).long().clamp(0, BINS - 1)
            )
            clear = (place - 0.5).abs() > 0.03
            words = F.normalize(embeddings[self.sides[index]], dim=-1)
            logits = F.normalize(features[clear], dim=-1) @ words.T * self.side_scale
            loss = loss + F.cross_entropy(logits, (place[clear] > 0.5).long())
        return loss

    def read(self, attended: Attended, embeddings: torch.Tensor, batch: TensorBatch) -> torch.Tensor:
        """What a look brings back should name what it looked at: mean cross-entropy over the factors."""
        losses = []
        names = zip((*self.words, self.pictures), (*self.scale, self.side_scale), strict=True)
        factors = [(F.normalize(embeddings[words], dim=-1), scale) for words, scale in names]
        for layer, (outputs, _) in attended.items():
            looks = [look for look in batch.looks if look.layer == layer]
            for index, (words, scale) in enumerate(factors):
                known = [look for look in looks if look.factors[index] >= 0]
                if not known:
                    continue
                place = torch.tensor([[look.row, look.query] for look in known], device=outputs.device)
                features = F.normalize(outputs[place[:, 0], place[:, 1]].float(), dim=-1)
                logits = features @ words.T * scale
                target = torch.tensor([look.factors[index] for look in known], device=outputs.device)
                losses.append(F.cross_entropy(logits, target))
        return torch.stack(losses).mean() if losses else embeddings.new_zeros(())


def look_loss(attended: Attended, batch: TensorBatch) -> tuple[torch.Tensor, float]:
    """-log of the attention that the looking heads give to the tokens they should look at, and its mean share."""
    shares = []
    for layer, (_, weight) in attended.items():
        looks = [look for look in batch.looks if look.layer == layer]
        if not looks:
            continue
        mask = torch.zeros(len(looks), weight.shape[-1], device=weight.device)
        for index, look in enumerate(looks):
            mask[index, look.keys] = 1.0
        rows, queries = torch.tensor([[look.row, look.query] for look in looks], device=weight.device).T
        share = weight[rows, :, queries][:, LOOKING_HEADS].float()
        shares.append((share * mask[:, None]).sum(-1).flatten())
    if not shares:
        return torch.zeros((), device=batch.pixels.device), float("nan")
    found = torch.cat(shares)
    return -(found + 1e-4).log().mean(), found.mean().item()


def _balanced(logits: torch.Tensor, target: torch.Tensor, accuracies: list[float]) -> torch.Tensor:
    filled = target > 0
    accuracies.append((logits.argmax(-1) == target)[filled].float().mean().item() if filled.any() else float("nan"))
    loss = F.cross_entropy(logits, target, reduction="none")
    empty = loss[~filled].mean() if (~filled).any() else loss.new_zeros(())
    return empty * 0.5 + (loss[filled].mean() if filled.any() else loss.new_zeros(()))
