"""A validated request as the arguments of transformers' `generate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from contract.errors import LimitError
from contract.request import GenerateRequest, Media, Sampling
from server.language_model import LoadedModel


def drop_masked_tokens(request: GenerateRequest) -> GenerateRequest:
    """The same request without its masked tokens and without a mask.

    A masked token changes neither attention nor positions, and a single prompt needs no padding; dropping
    it makes padding on the right, which `generate` would continue from, as harmless as on the left.
    """
    if request.attention_mask is None:
        return request
    kept = request.input_ids[request.attention_mask.astype(bool)]
    return replace(request, input_ids=kept, attention_mask=None)


def check_positions(request: GenerateRequest, loaded: LoadedModel) -> None:
    """Hold prompt and answer against the model's context.

    Raises:
        LimitError: they do not fit together.
    """
    wanted = request.input_ids.size + request.sampling.max_new_tokens
    if wanted > loaded.max_positions:
        raise LimitError(
            "prompt and answer are longer than the model's context",
            field="sampling.max_new_tokens",
            expected=f"at most {loaded.max_positions} tokens",
            got=f"{request.input_ids.size} + {request.sampling.max_new_tokens}",
        )


def generation_inputs(request: GenerateRequest, loaded: LoadedModel) -> dict[str, Any]:
    """Model inputs of a request that has no masked tokens.

    Returns:
        `input_ids` int64 [1, L]; with media also `mm_token_type_ids` int32 [1, L] (0 text, 1 image,
        2 video), `image_grid_thw` and `video_grid_thw` int64 [count, 3], and `mm_encoder_outputs` with, per
        kind, `pooler_output` [medium][n, D] and `deepstack_features` [level][medium][n, D] in the model's
        dtype and on its device.
    """
    ids = torch.from_numpy(np.array(request.input_ids, dtype=np.int64))[None].to(loaded.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not request.media:
        return inputs
    types = torch.zeros_like(ids, dtype=torch.int32)
    types[ids == loaded.shape.image_token_id] = 1
    types[ids == loaded.shape.video_token_id] = 2
    inputs["mm_token_type_ids"] = types
    inputs["mm_encoder_outputs"] = {}
    for kind in ("image", "video"):
        if items := request.of_kind(kind):
            grids = [item.grid.as_list() for item in items]
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids, dtype=torch.int64, device=loaded.device)
            inputs["mm_encoder_outputs"][kind] = _encoder_output(items, loaded)
    return inputs


def generation_config(sampling: Sampling, loaded: LoadedModel) -> GenerationConfig:
    """transformers' configuration of one generation; sampling parameters only where they apply."""
    values: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "do_sample": sampling.do_sample,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": list(loaded.end_ids),
        "pad_token_id": loaded.end_ids[-1],
    }
    if sampling.do_sample:
        names = ("temperature", "top_p", "top_k", "min_p")
        values |= {name: getattr(sampling, name) for name in names}
    return GenerationConfig(**values)


def _encoder_output(items: list[Media], loaded: LoadedModel) -> BaseModelOutputWithDeepstackFeatures:
    levels = range(loaded.shape.deepstack_levels)
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(_tensor(item.embeds, loaded) for item in items),
        deepstack_features=[tuple(_tensor(item.deepstack[level], loaded) for item in items) for level in levels],
    )


def _tensor(array: NDArray[Any], loaded: LoadedModel) -> torch.Tensor:
    # Views of a body from a foreign client may be unaligned or read-only, which torch does not take.
    usable = np.require(array, requirements=["C", "A", "W"])
    return torch.from_numpy(usable).to(device=loaded.device, dtype=loaded.dtype)
