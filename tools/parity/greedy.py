"""Greedy generation that no default of a checkpoint changes.

transformers fills every parameter that a `GenerationConfig` leaves at None from the model's own, which comes from the
checkpoint's generation_config.json (`_prepare_generation_config` in transformers/generation/utils.py): released
checkpoints sample by default. The split's language model has no such defaults, so the unsplit one must not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def forget_defaults(model: Any) -> Any:
    """The same model without what its checkpoint's generation_config.json asks for, but for the tokens that end."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    return model


def greedy_config(end_ids: Sequence[int], max_new_tokens: int) -> Any:
    """The most probable token at each step, up to a token of `end_ids`.

    Returns:
        A `GenerationConfig`.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=end_ids[-1],
    )
