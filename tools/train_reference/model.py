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
    self: Any, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """`Qwen3VLVisionAttention.forward` for segments of one length: one sdpa call in place of a loop over them."""
    total, segments = hidden_states.shape[0], cu_seqlens.numel() - 1
    q, k, v = self.qkv(hidden_states).reshape(total, 3, self.num_heads, -1).unbind(1)
    q, k = upstream.apply_rotary_pos_emb_vision(q, k, *position_embeddings)  # type: ignore[misc]
    q, k, v = (x.reshape(segments, total // segments, self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    # Written out: the fused CPU kernel's backward pass takes three times as long at these sizes.
    scores = (q.to(v.dtype) * self.scaling) @ k.to(v.dtype).transpose(2, 3)
    out = scores.softmax(-1).to(v.dtype) @ v
    return self.proj(out.transpose(1, 2).reshape(total, -1))


class AuxiliaryHeads(nn.Module):
    """Reads each factor from one output of the encoder through the language model's own word embeddings.

    Level 0 names the colour, level 1 the shape, level 2 the digit, the merged embedding says where a
    centre lies: so that each of the four outputs carries something the others need not.
    """

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.words = [vocabulary.words(tuple(COLOURS)), vocabulary.words(SHAPES), vocabulary.words(DIGITS)]
        self.nothing = nn.Parameter(torch.randn(3, width) * 0.02)
        self.scale = nn.Parameter(torch.full((3,), 10.0))
        self.centre = nn.Linear(width, 2)

    def forward(self, output: Any, embeddings: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, list[float]]:
        """Sum of the four losses, and the accuracy of each on cells that hold something."""
        losses, accuracies = [], []
        targets = (batch.cells.colour, batch.cells.shape, batch.cells.digit)
        for index, target in enumerate(targets):
            words = torch.cat([self.nothing[index][None], embeddings[self.words[index]]])
            features = F.normalize(output.deepstack_features[index].float(), dim=-1)
            logits = features @ F.normalize(words, dim=-1).T * self.scale[index]
            losses.append(_balanced(logits, torch.from_numpy(target), accuracies))
        logits = self.centre(output.pooler_output.float())
        losses.append(_balanced(logits, torch.from_numpy(batch.cells.centre), accuracies))
        return torch.stack(losses).sum(), accuracies


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
        input_ids=ids, position_ids=positions.expand(3, ids.shape[0], -1), mm_encoder_outputs={batch.kind: outputs},
        use_cache=False,
    )[0]  # fmt: skip
    return model.lm_head(hidden)


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
