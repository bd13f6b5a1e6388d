"""Convert a validated request to the model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from qwen3vl_edge.contract.wire.request import KINDS, GenerateRequest, MediaEmbeddings
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel


def position_ids(inputs: dict[str, torch.Tensor], loaded: LoadedModel) -> tuple[torch.Tensor, int]:
    """Positions of a prompt's tokens, as `Qwen3VLForConditionalGeneration._prepare_position_ids_for_generation`.

    Args:
        inputs: `prompt_inputs` of the request.

    Returns:
        int64 [4, 1, L]: text positions, then time, height and width of M-RoPE; and `rope_deltas`, the offset of
        the answer's M-RoPE positions from its text positions.
    """
    ids = inputs["input_ids"]
    text = torch.arange(ids.shape[1], device=ids.device)[None, None]
    if "mm_token_type_ids" not in inputs:  # no media
        return text.expand(4, -1, -1), 0
    vision, deltas = loaded.model.model.get_rope_index(**inputs)
    return torch.cat([text, vision]), int(deltas.item())


def prompt_inputs(request: GenerateRequest, loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Upstream model inputs of a prompt without masked tokens.

    They are on the CPU, where positions are counted: on a GPU each of the many small steps of that would wait for it.

    Returns:
        `input_ids` and `attention_mask` int64 [1, L]; with media also `mm_token_type_ids` int32 [1, L] (0 text,
        1 image, 2 video), `image_grid_thw` and `video_grid_thw` int64 [count, 3].
    """
    ids = torch.from_numpy(request.input_ids.copy())[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not request.media:
        return inputs
    types = torch.zeros_like(ids, dtype=torch.int32)
    types[ids == loaded.shape.image_token_id] = 1
    types[ids == loaded.shape.video_token_id] = 2
    inputs["mm_token_type_ids"] = types
    for kind in KINDS:
        if rows := [item.grid.as_list() for item in request.of_kind(kind)]:
            inputs[f"{kind}_grid_thw"] = torch.tensor(rows, dtype=torch.int64)
    return inputs


def generation_inputs(request: GenerateRequest, loaded: LoadedModel) -> dict[str, Any]:
    """All inputs of upstream's `generate`, with the embeddings; the reference that the engine is compared with."""
    inputs = {name: tensor.to(loaded.device) for name, tensor in prompt_inputs(request, loaded).items()}
    return {**inputs, **encoder_outputs(request.media, loaded)}


def encoder_outputs(items: Sequence[MediaEmbeddings], loaded: LoadedModel) -> dict[str, Any]:
    """`mm_encoder_outputs` of media in the order of their placeholders.

    Returns:
        Empty without media; else per kind `pooler_output` [medium][n, D] and `deepstack_features`
        [level][medium][n, D], in the model's dtype and on its device.
    """
    outputs = {}
    for kind in KINDS:
        if of_kind := [item for item in items if item.kind == kind]:
            outputs[kind] = _encoder_output(of_kind, loaded)
    return {"mm_encoder_outputs": outputs} if outputs else {}


def _encoder_output(items: list[MediaEmbeddings], loaded: LoadedModel) -> BaseModelOutputWithDeepstackFeatures:
    levels = range(loaded.shape.deepstack_levels)
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(_tensor(item.embeds, loaded) for item in items),
        deepstack_features=[tuple(_tensor(item.deepstack[level], loaded) for item in items) for level in levels],
    )


def _tensor(array: NDArray[Any], loaded: LoadedModel) -> torch.Tensor:
    # Views of a request body may be unaligned or read-only, which torch does not accept.
    usable = np.require(array, requirements=["C", "A", "W"])
    return torch.from_numpy(usable).to(device=loaded.device, dtype=loaded.dtype)
