"""The sampling of one of many requests that an engine decodes together."""

from __future__ import annotations

from qwen3vl_edge.contract.wire.request import Sampling


def sampling_of(index: int, tokens: int) -> Sampling:
    """A third are sampled, with seeds, a few with a repetition penalty."""
    return Sampling(
        max_new_tokens=tokens,
        do_sample=index % 3 == 0,
        temperature=1.5,
        top_p=0.95,
        seed=index,
        repetition_penalty=1.2 if index % 5 == 0 else 1.0,
    )
