"""Reject, before queueing, requests that the contract allows but vLLM would reject, change or misread."""

from __future__ import annotations

import numpy as np

from qwen3vl_edge.contract.errors import LimitError, WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.prompt import media_spans
from qwen3vl_edge.server.engines.vllm.model import VllmModel

TEMPERATURES = (0.01, 2.0)  # vLLM 0.32 silently raises lower ones to 0.01, and rejects higher ones
REMEDY = "Ask a server that runs with --engine transformers."


def check_request(request: GenerateRequest, loaded: VllmModel) -> None:
    """Validate a prepared request against vLLM's own limits.

    Raises:
        LimitError: a medium is larger than vLLM's embedding cache, or too many likeliest tokens are requested.
        WireError: a temperature that vLLM would change, or a clip whose frames it would not find.
    """
    _check_sampling(request.sampling)
    if request.logprobs is not None and request.logprobs > loaded.max_logprobs:
        raise LimitError(
            "too many likeliest tokens are requested",
            field="logprobs",
            expected=f"at most {loaded.max_logprobs}",
            got=request.logprobs,
            remedy="Start the server with a larger max_logprobs in vllm_args.",
        )
    for index, item in enumerate(request.media):
        if item.embeds.shape[0] > loaded.max_medium_tokens:
            raise LimitError(
                "one picture or clip has more visual tokens than vLLM takes at once",
                field=f"grid_thw.{index}",
                expected=f"at most {loaded.max_medium_tokens}",
                got=item.embeds.shape[0],
                remedy="Start the server with a larger max_num_batched_tokens in vllm_args.",
            )
    check_clips(request, loaded)


def check_clips(request: GenerateRequest, loaded: VllmModel) -> None:
    """Check that each frame is enclosed by `<|vision_start|>` and `<|vision_end|>`, as Qwen's processor writes them.

    vLLM finds the frames of a clip by these markers, transformers by the placeholders only; with other markers the
    two would assign different positions. A picture between two frames is rejected too: its range would overlap the
    clip's.

    Raises:
        WireError: a frame is not enclosed by its markers, or a picture is between two frames.
    """
    ids = request.input_ids
    foreign = np.isin(ids, (loaded.vision_start_id, loaded.vision_end_id, loaded.shape.image_token_id))
    for span in media_spans(request, loaded.shape):
        if span.media.kind != "video":
            continue
        inside = np.flatnonzero(ids[span.start : span.end] == loaded.shape.video_token_id) + span.start
        frames = inside.reshape(span.media.grid.t, -1)
        last_end = None
        for first, last in zip(frames[:, 0], frames[:, -1], strict=True):
            around = first > 0 and last + 1 < ids.size
            if not (around and ids[first - 1] == loaded.vision_start_id and ids[last + 1] == loaded.vision_end_id):
                raise _unmarked(int(first))
            if last_end is not None and foreign[last_end + 1 : first - 1].any():
                raise _unmarked(int(first))
            last_end = last + 1


def _unmarked(place: int) -> WireError:
    return WireError(
        "the frames of a clip must each be enclosed by <|vision_start|> and <|vision_end|>, by which vLLM finds them",
        field="input_ids",
        got=f"frame at token {place}",
        remedy=REMEDY,
    )


def _check_sampling(sampling: Sampling) -> None:
    low, high = TEMPERATURES
    if sampling.do_sample and not low <= sampling.temperature <= high:
        raise WireError(
            "vLLM would not sample at this temperature",
            field="sampling.temperature",
            expected=f"{low:g} to {high:g}",
            got=sampling.temperature,
            remedy=f"Leave sampling out for the likeliest tokens, or: {REMEDY}",
        )
