"""Prefill of prompts: their logits, keys and values, and the offset of their positions.

A long prompt is computed in pieces, and short ones together, padded on the left, as `generate` pads a batch. A cached
prefix is not computed again: the model's inputs are the ids, positions, embeddings and DeepStack levels of the rest.

So it is with recurrent layers too. Their states go from piece to piece. Padding comes before a prompt and with zeros
for inputs (transformers' `apply_mask_to_padding_states`): it leaves the states, which begin as zeros, as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.prompt import media_between
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import (
    Layers,
    cache_of,
    layers_of,
    row_of,
    tokens_of,
)
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.model_inputs import encoder_outputs, position_ids, prompt_inputs


@dataclass(frozen=True)
class Prefilled:
    """Result of a prefill.

    Attributes:
        logits: [vocabulary], after the last prompt token.
        layers: keys and values of all prompt tokens, [1, heads, tokens, width], and states after them.
        delta: offset of M-RoPE positions from the token count.
    """

    logits: torch.Tensor
    layers: Layers
    delta: int


@torch.inference_mode()
def prefill(
    request: GenerateRequest,
    loaded: LoadedModel,
    held: Layers | None = None,
    most_tokens: Callable[[], int | None] = lambda: None,
) -> Prefilled:
    """Compute the logits and the KV cache of a prompt.

    Args:
        request: validated, without masked tokens.
        held: cached keys and values of a prefix, shorter than the prompt and ending outside of any medium. They change
            the order of sums: the logits are equal up to rounding. So do pieces.
        most_tokens: of the next piece, asked before each; None for all that is left.
    """
    start = 0 if held is None else tokens_of(held)
    inputs = prompt_inputs(request, loaded)
    positions, delta = position_ids(inputs, loaded)
    cache = DynamicCache(config=loaded.model.config) if held is None else cache_of(held, loaded.model.config)
    length = request.input_ids.size
    ids, mask, positions = (
        tensor.to(loaded.device) for tensor in (inputs["input_ids"], inputs["attention_mask"], positions)
    )
    while start < length:
        end = min(length, start + (most_tokens() or length))
        outputs = loaded.model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, :, start:end],
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            **encoder_outputs(media_between(request, loaded.shape, start, end), loaded),
        )
        start = end
    return Prefilled(outputs.logits[0, -1], layers_of(cache), delta)


@torch.inference_mode()
def prefill_together(requests: list[GenerateRequest], loaded: LoadedModel) -> list[Prefilled]:
    """Compute several prompts in one call of the model; their logits are those of `prefill` up to rounding.

    Args:
        requests: as for `prefill`.
    """
    width = max(request.input_ids.size for request in requests)
    starts = [width - request.input_ids.size for request in requests]
    inputs = [prompt_inputs(request, loaded) for request in requests]
    places = [position_ids(item, loaded) for item in inputs]
    own = list(zip(inputs, starts, strict=True))
    # What stands under the mask reaches nobody, but a placeholder there would be counted.
    ids = torch.cat([pad(item["input_ids"], (start, 0), value=loaded.end_ids[0]) for item, start in own])
    mask = torch.cat([pad(item["attention_mask"], (start, 0)) for item, start in own])
    positions = [pad(positions, (start, 0)) for (positions, _), start in zip(places, starts, strict=True)]
    cache = DynamicCache(config=loaded.model.config)
    outputs = loaded.model(
        input_ids=ids.to(loaded.device),
        attention_mask=mask.to(loaded.device),
        position_ids=torch.cat(positions, dim=1).to(loaded.device),
        cache=cache,
        use_cache=True,
        logits_to_keep=1,
        **encoder_outputs([item for request in requests for item in request.media], loaded),
    )
    layers = layers_of(cache)
    return [
        Prefilled(outputs.logits[row, -1], row_of(layers, row, start), delta)
        for row, (start, (_, delta)) in enumerate(zip(starts, places, strict=True))
    ]
