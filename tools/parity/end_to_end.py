"""End-to-end parity: greedy tokens and logits of the split compared with the unsplit model's, both in fp32.

The split's request goes through the wire format and the server's own checks and input building; only
the socket is not used. The unsplit model gets its usual input: the native grid of each picture, which
the bundle's pixel policy gives, never a bucket. A third side, transformers alone, reads the original files itself
(`transformers_alone.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.open import open_model_of
from qwen3vl_edge.contract.wire.basis import Basis, bases_of
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, Sampling
from qwen3vl_edge.contract.wire.validate import validate_request
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.messages import Message
from qwen3vl_edge.edge_runtime.inputs.prompt import Processor, load_processor, prepare_prompt
from qwen3vl_edge.tools.parity.greedy import forget_defaults, greedy_config
from qwen3vl_edge.tools.parity.transformers_alone import Alone, AloneProcessor, compare_alone

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel


@dataclass(frozen=True)
class PromptResult:
    """One prompt's answers, from the split and from the unsplit model.

    Attributes:
        exact: every picture was encoded at its native grid, so that answers must agree; False where
            a bucket resized one, which changes the model's input.
        first_divergence: index of the first token that differs, None if all agree.
        kl: KL(unsplit ‖ split) in nats at each step of the unsplit answer.
        sent_bytes: of the request body.
        alone: the third side, transformers alone from the original files; None where it was not asked.
    """

    name: str
    exact: bool
    unsplit_ids: tuple[int, ...]
    split_ids: tuple[int, ...]
    unsplit_text: str
    split_text: str
    first_divergence: int | None
    kl: tuple[float, ...]
    sent_bytes: int
    alone: Alone | None = None

    @property
    def agrees(self) -> bool:
        return self.first_divergence is None


class Unsplit:
    """The whole model in fp32, as transformers runs it: the reference."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(checkpoint.path, dtype=torch.float32, local_files_only=True)
        self.model = forget_defaults(model.eval())
        self.folder = checkpoint.path
        self.processor: Processor = load_processor(checkpoint.path)
        self.alone = AloneProcessor(checkpoint.path)

    def inputs(self, messages: Sequence[Message], policy: BucketPolicy) -> dict[str, Any]:
        """The HF processor's tensors at native grids."""
        native = replace(policy, buckets=None, dynamic=True)
        return prepare_prompt(messages, self.processor, native).inputs


class Split:
    """The edge with fp32 or fp16 embeddings, and the server's language model in fp32."""

    def __init__(self, edge: Edge, loaded: LoadedModel) -> None:
        self.edge = edge
        self.loaded = loaded

    def with_edge(self, edge: Edge) -> Split:
        """The same server with another device."""
        return Split(edge, self.loaded)

    def greedy(self, inputs: dict[str, Any], max_new_tokens: int) -> tuple[int, ...]:
        """The answer's token ids."""
        return _greedy(self.loaded.model, inputs, max_new_tokens, self)

    def agrees(self, inputs: dict[str, Any], answer: Sequence[int]) -> bool:
        """Whether greedy decoding gives this answer: each of its tokens is the likeliest, in one pass along it."""
        likeliest: list[int] = _logits_along(self.loaded.model, inputs, answer).argmax(axis=1).tolist()
        return likeliest == list(answer)

    def inputs(self, messages: Sequence[Message], sampling: Sampling) -> tuple[dict[str, Any], bool, int]:
        """Model inputs as the server builds them from the wire, whether all grids are native, and the bytes."""
        encoded = self.edge.encode(messages, sampling)
        inputs, size = self.received(encoded.request, self.edge.basis)
        return inputs, all(item.choice.exact for item in encoded.media), size

    def received(self, request: GenerateRequest, basis: Basis | None) -> tuple[dict[str, Any], int]:
        """Model inputs as the server builds them from a request's body, and its bytes."""
        from qwen3vl_edge.server.engines.prompt import drop_masked_tokens
        from qwen3vl_edge.server.engines.transformers.model_inputs import generation_inputs

        body = encode_request(request)
        decoded = decode_request(bytes(body), bases=bases_of(basis))
        validate_request(decoded, self.loaded.shape, Limits())
        return generation_inputs(drop_masked_tokens(decoded), self.loaded), body.size


def open_both(edge: Edge, model: str | Path) -> tuple[Split, Unsplit]:
    """Load both sides.

    Raises:
        CheckpointError: the checkpoint is missing.
        ModelMismatchError: it is not the one that the bundle was exported from.
    """
    checkpoint = open_model_of(edge.bundle, str(model), patterns=("*",))
    from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
    from qwen3vl_edge.server.options import ServerOptions

    options = ServerOptions(model=str(checkpoint.path), dtype="float32", device_map="cpu")
    return Split(edge, load_language_model(checkpoint, options)), Unsplit(checkpoint)


def compare_prompt(
    name: str, messages: Sequence[Message], split: Split, unsplit: Unsplit, max_new_tokens: int
) -> PromptResult:
    """Generate greedily with both models, compare their logits along the unsplit answer, then transformers alone."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    split_inputs, exact, sent_bytes = split.inputs(messages, sampling)
    unsplit_inputs = unsplit.inputs(messages, split.edge.policy)
    unsplit_ids = _greedy(unsplit.model, unsplit_inputs, max_new_tokens, split)
    split_ids = _greedy(split.loaded.model, split_inputs, max_new_tokens, split)
    kl: tuple[float, ...] = ()
    if split_inputs["input_ids"].shape == unsplit_inputs["input_ids"].shape:
        reference = _logits_along(unsplit.model, unsplit_inputs, unsplit_ids)
        kl = tuple(kl_divergence(reference, _logits_along(split.loaded.model, split_inputs, unsplit_ids)).tolist())
    alone = compare_alone(
        unsplit.alone,
        messages,
        unsplit_inputs,
        lambda inputs: _greedy(unsplit.model, inputs, max_new_tokens, split),
        resizes_bytes=split.edge.policy.pixels.resizes_bytes,
    )
    decode = split.loaded.tokenizer.decode
    return PromptResult(
        name,
        exact,
        unsplit_ids,
        split_ids,
        decode(unsplit_ids, skip_special_tokens=True),
        decode(split_ids, skip_special_tokens=True),
        first_divergence(unsplit_ids, split_ids),
        kl,
        sent_bytes,
        alone,
    )


def compare_prompts(
    prompts: Sequence[tuple[str, Sequence[Message]]],
    split: Split,
    unsplit: Unsplit,
    max_new_tokens: int,
    progress: Callable[[str], None] = lambda name: None,
) -> list[PromptResult]:
    """`compare_prompt` for each (name, messages)."""
    results = []
    for name, messages in prompts:
        progress(name)
        results.append(compare_prompt(name, messages, split, unsplit, max_new_tokens))
    return results


def first_divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, counting a missing one; None for equal answers."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def kl_divergence(reference_logits: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
    """KL(reference ‖ other) in nats per step, from logits [steps, vocabulary]."""
    p, q = (_log_softmax(values.astype(np.float64)) for values in (reference_logits, logits))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1), dtype=np.float64)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)


def _greedy(model: Any, inputs: dict[str, Any], max_new_tokens: int, split: Split) -> tuple[int, ...]:
    import torch

    config = greedy_config(split.loaded.end_ids, max_new_tokens)
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=config)
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())


def _logits_along(model: Any, inputs: dict[str, Any], answer: Sequence[int]) -> NDArray[np.float32]:
    """Logits [steps, vocabulary] that predict each token of `answer`, in one forward pass."""
    import torch

    prompt = inputs["input_ids"].shape[1]
    tail = torch.tensor([list(answer)], dtype=torch.int64)
    extended = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tail], dim=1)}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            fill = torch.full_like(tail, 1 if name == "attention_mask" else 0, dtype=inputs[name].dtype)
            extended[name] = torch.cat([inputs[name], fill], dim=1)
    with torch.inference_mode():
        logits = model(**extended).logits[0, prompt - 1 : -1]
    array: NDArray[np.float32] = logits.float().numpy()
    return array
