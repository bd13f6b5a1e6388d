"""The next token of one request with transformers' own processors and `torch.multinomial`: the oracle of a batch."""

from __future__ import annotations

import os

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import Token


class OneRowSampler:
    """Chooses tokens for one request.

    Args:
        request: its sampling, and its prompt for the repetition penalty.
        device: device of the logits.
    """

    def __init__(self, request: GenerateRequest, device: torch.device) -> None:
        self._sampling = request.sampling
        self._processors = _processors(request.sampling, request.input_ids.size)
        self._prompt = torch.from_numpy(request.input_ids.copy()).to(device) if self._processors else None
        self._generator = _generator(request.sampling, device) if request.sampling.do_sample else None
        self._logprobs = request.logprobs

    def pick(self, logits: torch.Tensor, ids: list[int]) -> Token:
        """Choose from logits [vocabulary] after the tokens `ids` of the answer."""
        scores = logits.float()[None]
        changed = scores
        if self._prompt is not None:
            so_far = torch.cat([self._prompt, torch.tensor(ids, dtype=torch.int64, device=self._prompt.device)])[None]
            changed = self._processors(so_far, scores.clone())
        if self._generator is None:
            chosen = int(changed.argmax(dim=-1))
        else:
            chosen = int(torch.multinomial(changed.softmax(dim=-1), 1, generator=self._generator))
        return Token(chosen) if self._logprobs is None else _with_logprobs(chosen, scores[0], self._logprobs)


def _with_logprobs(chosen: int, scores: torch.Tensor, count: int) -> Token:
    logprobs = scores.log_softmax(dim=-1)
    values, places = logprobs.topk(min(count, logprobs.numel()))
    return Token(chosen, float(logprobs[chosen]), tuple(zip(places.tolist(), values.tolist(), strict=True)))


class LogitBias(LogitsProcessor):  # type: ignore[misc]
    """`LogitBiasLogitsProcessor` of vllm/v1/sample/logits_processor/builtin.py."""

    def __init__(self, biases: tuple[tuple[int, float], ...]) -> None:
        self._biases = biases

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, bias in self._biases:
            scores[0, token] += bias
        return scores


class AnswerPenalties(LogitsProcessor):  # type: ignore[misc]
    """The last lines of `apply_penalties` in vllm/model_executor/layers/utils.py."""

    def __init__(self, sampling: Sampling, prompt_tokens: int) -> None:
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.zeros_like(scores, dtype=torch.int64)
        answer = input_ids[:, self._prompt_tokens :]
        counts.scatter_add_(1, answer, torch.ones_like(answer))
        scores = scores - self._sampling.frequency_penalty * counts
        return scores - self._sampling.presence_penalty * (counts > 0)


def _processors(sampling: Sampling, prompt_tokens: int) -> LogitsProcessorList:
    """In the order of `GenerationMixin._get_logits_processor`, transformers/generation/utils.py."""
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        processors.append(LogitBias(sampling.logit_bias))
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.frequency_penalty or sampling.presence_penalty:
        processors.append(AnswerPenalties(sampling, prompt_tokens))
    if not sampling.do_sample:
        return processors
    if sampling.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k != 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator:
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(8), "little") >> 1
    return torch.Generator(device).manual_seed(seed)
