"""A prompt through the model: its logits, its keys and values, and the offset of its positions.

A prompt is computed alone, exactly as `generate` computes it; only decoding is done together. What an earlier request
left of its beginning is not computed again: then ids, positions, embeddings and DeepStack levels of the rest go in.
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
    """A prompt that was computed.

    Attributes:
        logits: [vocabulary], after its last token.
        layers: keys and values of all its tokens, [1, heads, tokens, width].
        delta: what M-RoPE adds to the count of tokens.
    """

    logits: torch.Tensor
    layers: Layers
    delta: int


@torch.inference_mode()
def prefill(request: GenerateRequest, loaded: LoadedModel, held: Layers | None = None) -> Prefilled:
    """Compute a prompt.

    Args:
        request: checked, without masked tokens.
        held: keys and values of its first tokens, fewer than all, that end outside of any medium. With them sums run
            in another order: the logits are equal but for rounding.
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
