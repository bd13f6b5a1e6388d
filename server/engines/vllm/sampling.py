"""Convert the contract's sampling parameters to vLLM's, and vLLM's log-probabilities to the protocol's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.protocol import Token


def sampling_arguments(request: GenerateRequest, end_ids: tuple[int, ...]) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams`.

    Every parameter that affects an answer is set, so that no default of vLLM or of the checkpoint applies. vLLM ends
    an answer only at `stop_token_ids` (`ignore_eos`) and returns that token as the last one.
    """
    sampling = request.sampling
    sampled = sampling.do_sample
    return {
        "temperature": sampling.temperature if sampled else 0.0,
        "top_p": sampling.top_p if sampled else 1.0,
        "top_k": sampling.top_k if sampled else 0,  # 0 is off in both
        "min_p": (sampling.min_p or 0.0) if sampled else 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": sampling.seed,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": 0,
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,
        "logprobs": request.logprobs,
        "detokenize": False,
        "skip_special_tokens": False,
    }


def token_of(token_id: int, logprobs: Mapping[int, Any] | None, count: int | None) -> Token:
    """One token with its log-probabilities.

    Args:
        logprobs: vLLM's at this position by token id: the chosen token and the `count` likeliest.
    """
    if logprobs is None or count is None:
        return Token(token_id)
    ranked = sorted((item for item in logprobs.items() if item[1].rank <= count), key=lambda item: item[1].rank)
    top = tuple((int(other), float(entry.logprob)) for other, entry in ranked)
    return Token(token_id, float(logprobs[token_id].logprob), top)
