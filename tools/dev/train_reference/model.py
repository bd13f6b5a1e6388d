"""The model in training: transformers' own classes, batched vision attention, the answers' loss."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl as upstream

from qwen3vl_edge.tools.dev.train_reference.looks import DIGIT_LAYER, NAME_LAYER
from qwen3vl_edge.tools.dev.train_reference.tensors import TensorBatch

Attended = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Per layer, what its attention adds [B, L, D], and its weights after softmax [B, heads, L, L]."""


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
