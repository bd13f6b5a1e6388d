"""A request's prompt, for both engines: validation, removal of masked tokens, spans of its media."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import LimitError
from qwen3vl_edge.contract.wire.request import (
    KINDS,
    GenerateRequest,
    Limits,
    MediaEmbeddings,
    ModelShape,
    Sampling,
)
from qwen3vl_edge.contract.wire.validate import validate_request
from qwen3vl_edge.server.engines.protocol import ServedModel


def prepare_prompt(request: GenerateRequest, loaded: ServedModel, limits: Limits) -> GenerateRequest:
    """Validate a request for any engine; returns it without masked tokens.

    Raises:
        ContractError: the request is invalid.
    """
    validate_request(request, loaded.shape, limits)
    unmasked = drop_masked_tokens(request)
    if unmasked.input_ids.size != request.input_ids.size:
        # Two pictures separated only by masked tokens would now be one span of placeholders.
        validate_request(unmasked, loaded.shape, limits)
    check_positions(unmasked, loaded)
    return unmasked


def drop_masked_tokens(request: GenerateRequest) -> GenerateRequest:
    """The same request without its masked tokens and without a mask.

    A masked token changes neither attention nor positions, and a single prompt needs no padding; dropping
    it makes padding on the right, which generation would continue from, as harmless as on the left.
    """
    if request.attention_mask is None:
        return request
    unmasked = request.input_ids[request.attention_mask.astype(bool)]
    return replace(request, input_ids=unmasked, attention_mask=None)


def check_positions(request: GenerateRequest, loaded: ServedModel) -> None:
    """Validate the length of prompt and answer against the model's context.

    Raises:
        LimitError: together they exceed it.
    """
    total = request.input_ids.size + request.sampling.max_new_tokens
    if total > loaded.max_positions:
        raise LimitError(
            "prompt and answer are longer than the model's context",
            field="sampling.max_new_tokens",
            expected=f"at most {loaded.max_positions} tokens",
            got=f"{request.input_ids.size} + {request.sampling.max_new_tokens}",
        )


@dataclass(frozen=True)
class MediaSpan:
    """One medium's placeholders: first token and end; a clip's span includes the text between its frames."""

    start: int
    end: int
    media: MediaEmbeddings


def media_spans(request: GenerateRequest, shape: ModelShape) -> list[MediaSpan]:
    """One per medium, in the order of `request.media`; the request's placeholders were checked."""
    places = {
        "image": np.flatnonzero(request.input_ids == shape.image_token_id),
        "video": np.flatnonzero(request.input_ids == shape.video_token_id),
    }
    used = dict.fromkeys(KINDS, 0)
    spans = []
    for item in request.media:
        first, count = used[item.kind], item.embeds.shape[0]
        own = places[item.kind][first : first + count]
        used[item.kind] = first + count
        spans.append(MediaSpan(int(own[0]), int(own[-1]) + 1, item))
    return spans


def media_between(request: GenerateRequest, shape: ModelShape, start: int, end: int) -> list[MediaEmbeddings]:
    """The embeddings of the placeholders among a prompt's tokens from `start` to `end`, as parts of their media."""
    found = []
    for span in media_spans(request, shape):
        token = shape.image_token_id if span.media.kind == "image" else shape.video_token_id
        rows = np.flatnonzero(request.input_ids[span.start : span.end] == token) + span.start
        first, last = np.searchsorted(rows, (start, end)).tolist()
        if first == 0 and last == rows.size:
            found.append(span.media)
        elif first < last:
            levels = tuple(level[first:last] for level in span.media.deepstack)
            found.append(replace(span.media, embeds=span.media.embeds[first:last], deepstack=levels))
    return found


def warm_up_request(loaded: ServedModel, logprobs: int | None = None) -> GenerateRequest:
    """The request that an engine runs before it is ready: two tokens after text and the smallest image."""
    shape = loaded.shape
    grid = Grid(1, shape.merge_size, shape.merge_size)
    zeros = np.zeros((1, shape.hidden_size), dtype=np.float16)
    text = loaded.end_ids[0]
    return GenerateRequest(
        model_hash=None,
        input_ids=np.array([text, shape.image_token_id, text], dtype=np.int64),
        media=(MediaEmbeddings("image", grid, zeros, (zeros,) * shape.deepstack_levels),),
        sampling=Sampling(max_new_tokens=2),
        logprobs=logprobs,
    )
