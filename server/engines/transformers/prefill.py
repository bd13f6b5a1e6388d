"""Prefill of one prompt: its logits, its keys and values, and the offset of its positions.

Each prompt is prefilled alone, exactly as `generate` does; only decode is batched. A cached prefix is not computed
again: then only the ids, positions, embeddings and DeepStack levels of the rest are model inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.prompt import media_spans
from qwen3vl_edge.server.engines.transformers.decode_batch import Layers, layers_of
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.model_inputs import encoder_outputs, position_ids, prompt_inputs


@dataclass(frozen=True)
class Prefilled:
    """Result of a prefill.

    Attributes:
        logits: [vocabulary], after the last prompt token.
        layers: keys and values of all prompt tokens, [1, heads, tokens, width].
        delta: offset of M-RoPE positions from the token count.
    """

    logits: torch.Tensor
    layers: Layers
    delta: int


@torch.inference_mode()
def prefill(request: GenerateRequest, loaded: LoadedModel, held: Layers | None = None) -> Prefilled:
    """Compute the logits and the KV cache of a prompt.

    Args:
        request: validated, without masked tokens.
        held: cached keys and values of a prefix, shorter than the prompt and ending outside of any medium. They change
            the order of sums: the logits are equal up to rounding.
    """
    start = 0 if held is None else held[0][0].shape[2]
    inputs = prompt_inputs(request, loaded)
    positions, delta = position_ids(inputs, loaded)
    rest = [span.media for span in media_spans(request, loaded.shape) if span.start >= start]
    outputs = loaded.model(
        input_ids=inputs["input_ids"][:, start:],
        attention_mask=inputs["attention_mask"],
        position_ids=positions[:, :, start:],
        cache=DynamicCache(config=loaded.model.config) if held is None else DynamicCache(held),
        use_cache=True,
        logits_to_keep=1,
        **encoder_outputs(rest, loaded),
    )
    return Prefilled(outputs.logits[0, -1], layers_of(outputs.cache), delta)
