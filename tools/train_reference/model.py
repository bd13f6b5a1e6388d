"""The model in training: transformers' own classes, batched vision attention, dense auxiliary heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl as upstream

from tools.train_reference.batches import Batch, Vocabulary
from tools.train_reference.scenes import COLOURS, SHAPES

DIGITS = tuple("0123456789")


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

    Level 0 names the colour, level 1 the shape, level 2 the digit, so that each level carries something
    of its own; the merged embedding names all three more faintly, whether a centre lies in the cell, and
    where in the picture the cell is.
    """

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.words = [vocabulary.words(tuple(COLOURS)), vocabulary.words(SHAPES), vocabulary.words(DIGITS)]
        self.nothing = nn.Parameter(torch.randn(3, width) * 0.02)
        self.scale = nn.Parameter(torch.full((3,), 10.0))
        self.centre = nn.Linear(width, 2)
        self.place = nn.Linear(width, 16)
        self.sides = [vocabulary.words(("left", "right")), vocabulary.words(("top", "bottom"))]
        self.side_scale = nn.Parameter(torch.tensor(10.0))
        self.merged_nothing = nn.Parameter(torch.randn(3, width) * 0.02)
        self.merged_scale = nn.Parameter(torch.full((3,), 10.0))

    def forward(self, output: Any, embeddings: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, list[float]]:
        """Sum of the four losses, and the accuracy of each on cells that hold something."""
        losses: list[torch.Tensor] = []
        accuracies: list[float] = []
        targets = (batch.cells.colour, batch.cells.shape, batch.cells.digit)
        for index, target in enumerate(targets):
            words = torch.cat([self.nothing[index][None], embeddings[self.words[index]]])
            features = F.normalize(output.deepstack_features[index].float(), dim=-1)
            logits = features @ F.normalize(words, dim=-1).T * self.scale[index]
            losses.append(_balanced(logits, torch.from_numpy(target), accuracies))
            # The merged embedding names every factor too: the language model then has all of them at its
            # first layer, and learns to bind them in fewer steps.
            words = torch.cat([self.merged_nothing[index][None], embeddings[self.words[index]]])
            logits = F.normalize(output.pooler_output.float(), dim=-1) @ F.normalize(words, dim=-1).T
            losses.append(0.5 * _balanced(logits * self.merged_scale[index], torch.from_numpy(target), []))
        logits = self.centre(output.pooler_output.float())
        losses.append(_balanced(logits, torch.from_numpy(batch.cells.centre), accuracies))
        # The losses above see directions alone. Without this the outputs grow apart in size (one level reached
        # 239 beside embeddings of 38), and after RMSNorm the small one, which holds the place, is lost.
        outputs = [output.pooler_output, *output.deepstack_features]
        sizes = [value.float().pow(2).mean(-1).add(1e-6).sqrt() for value in outputs]
        losses.append(torch.stack([(size - 1).pow(2).mean() for size in sizes]).sum())
        losses.append(self._places(output.pooler_output.float(), embeddings, batch))
        return torch.stack(losses).sum(), accuracies

    def _places(self, features: torch.Tensor, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Where in the picture each token lies: in eighths, and as the words left, right, top and bottom."""
        rows, columns = (int(n) // 2 for n in batch.grids[0, 1:])
        x = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
        y = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
        repeats = features.shape[0] // x.numel()
        loss = features.new_zeros(())
        eighths = self.place(features)
        for index, place in enumerate((x.repeat(repeats), y.repeat(repeats))):
            loss = loss + 0.5 * F.cross_entropy(eighths[:, 8 * index : 8 * index + 8], (place * 8).long())
            clear = (place - 0.5).abs() > 0.05
            words = F.normalize(embeddings[self.sides[index]], dim=-1)
            logits = F.normalize(features[clear], dim=-1) @ words.T * self.side_scale
            loss = loss + F.cross_entropy(logits, (place[clear] > 0.5).long())
        return loss


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


def encode(model: Any, batch: Batch) -> Any:
    """The encoder's outputs for the batch: pooler_output [n, D], deepstack_features three [n, D]."""
    return model.model.visual(torch.from_numpy(batch.pixels), grid_thw=torch.from_numpy(batch.grids))


def answer_logits(model: Any, batch: Batch, encoded: Any) -> torch.Tensor:
    """Logits [B, L, vocabulary] with the encoder's outputs scattered in."""
    ids = torch.from_numpy(batch.input_ids)
    pad = model.config.image_token_id if batch.kind == "image" else model.config.video_token_id
    types = (ids == pad).int() * (1 if batch.kind == "image" else 2)
    rows = batch.grids.shape[0] // ids.shape[0]
    grids = torch.from_numpy(batch.grids[:rows])
    # All rows share the visual prefix, so one row's positions are everyone's.
    positions, _ = model.model.get_rope_index(ids[:1], types[:1], **{f"{batch.kind}_grid_thw": grids})
    outputs = upstream.BaseModelOutputWithDeepstackFeatures(
        pooler_output=(encoded.pooler_output,), deepstack_features=[(level,) for level in encoded.deepstack_features]
    )
    hidden = model.model(
        input_ids=ids,
        position_ids=positions.expand(3, ids.shape[0], -1),
        mm_encoder_outputs={batch.kind: outputs},
        use_cache=False,
    )[0]
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted cross-entropy of the answer tokens."""
    labels = torch.from_numpy(batch.labels)[:, 1:]
    weights = torch.from_numpy(batch.weights)[:, 1:]
    keep = labels >= 0
    loss = F.cross_entropy(logits[:, :-1][keep].float(), labels[keep], reduction="none")
    return (loss * weights[keep]).sum() / weights[keep].sum()


def right_answers(logits: torch.Tensor, batch: Batch) -> list[bool]:
    """Per row, whether greedy decoding would give the whole answer (every answer token is the argmax)."""
    labels = torch.from_numpy(batch.labels)[:, 1:]
    wrong = (logits[:, :-1].argmax(-1) != labels) & (labels >= 0)
    return (~wrong.any(-1)).tolist()
