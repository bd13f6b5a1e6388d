"""The model in training: transformers' own classes, batched vision attention, dense auxiliary heads."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl as upstream

from tools.train_reference.batches import Vocabulary
from tools.train_reference.looks import DIGIT_LAYER, NAME_LAYER
from tools.train_reference.scenes import COLOURS, SHAPES
from tools.train_reference.tensors import TensorBatch

DIGITS = tuple("0123456789")
BINS = 12
Attended = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Per layer, what its attention adds [B, L, D], and its weights after softmax [B, heads, L, L]."""
LOOKING_HEADS = [0, 2]
"""One of each key-value group, so that two different values are read."""


def batched_vision_attention(
    self: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> torch.Tensor:
    """`Qwen3VLVisionAttention.forward` for segments of one length: one sdpa call in place of a loop over them."""
    total, segments = hidden_states.shape[0], cu_seqlens.numel() - 1
    q, k, v = self.qkv(hidden_states).reshape(total, 3, self.num_heads, -1).unbind(1)
    q, k = upstream.apply_rotary_pos_emb_vision(q, k, *position_embeddings)  # type: ignore[misc]
    q, k, v = (x.reshape(segments, total // segments, self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    # Written out: the fused CPU kernel's backward pass takes three times as long at these sizes.
    scores = (q.to(v.dtype) * self.scaling) @ k.to(v.dtype).transpose(2, 3)
    out = scores.softmax(-1).to(v.dtype) @ v
    projected: torch.Tensor = self.proj(out.transpose(1, 2).reshape(total, -1))
    return projected


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


def new_model(folder: Path, seed: int) -> Qwen3VLForConditionalGeneration:
    """A fresh model of the folder's config."""
    torch.manual_seed(seed)
    config = Qwen3VLConfig.from_pretrained(folder)
    config.text_config._attn_implementation = "eager"
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation={"text_config": "eager"})
    nn.init.normal_(model.model.visual.pos_embed.weight, std=0.05)
    return model


def encode(model: Any, batch: TensorBatch) -> Any:
    """The encoder's outputs for the batch: pooler_output [n, D], deepstack_features three [n, D]."""
    return model.model.visual(batch.pixels, grid_thw=batch.grids)


def answer_logits(model: Any, batch: TensorBatch, encoded: Any, attended: Attended | None = None) -> torch.Tensor:
    """Logits [B, L, vocabulary] with the encoder's outputs scattered in.

    `attended` is filled for the layers that look.
    """
    ids = batch.input_ids
    pad = model.config.image_token_id if batch.kind == "image" else model.config.video_token_id
    types = (ids == pad).int() * (1 if batch.kind == "image" else 2)
    rows = batch.grids.shape[0] // ids.shape[0]
    grids = batch.grids[:rows]
    # All rows share the visual prefix, so one row's positions are everyone's.
    positions, _ = model.model.get_rope_index(ids[:1], types[:1], **{f"{batch.kind}_grid_thw": grids})
    outputs = upstream.BaseModelOutputWithDeepstackFeatures(
        pooler_output=(encoded.pooler_output,), deepstack_features=[(level,) for level in encoded.deepstack_features]
    )
    with ExitStack() as hooks:
        for layer in () if attended is None else (NAME_LAYER, DIGIT_LAYER):
            attention = model.model.language_model.layers[layer].self_attn

            def keep(_: Any, __: Any, output: Any, layer: int = layer) -> None:
                attended[layer] = output  # type: ignore[index]

            hooks.callback(attention.register_forward_hook(keep).remove)
        hidden = model.model(
            input_ids=ids,
            position_ids=positions.expand(3, ids.shape[0], -1),
            mm_encoder_outputs={batch.kind: outputs},
            use_cache=False,
        )[0]
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def answer_loss(logits: torch.Tensor, batch: TensorBatch) -> torch.Tensor:
    """Weighted cross-entropy of the answer tokens."""
    labels = batch.labels[:, 1:]
    weights = batch.weights[:, 1:]
    keep = labels >= 0
    loss = F.cross_entropy(logits[:, :-1][keep].float(), labels[keep], reduction="none")
    return (loss * weights[keep]).sum() / weights[keep].sum()


def right_answers(logits: torch.Tensor, batch: TensorBatch) -> list[bool]:
    """Per row, whether greedy decoding would give the whole answer (every answer token is the argmax)."""
    labels = batch.labels[:, 1:]
    wrong = (logits[:, :-1].argmax(-1) != labels) & (labels >= 0)
    return (~wrong.any(-1)).tolist()
