"""The request that every engine answers before the first client's, so that all is in place by then."""

from __future__ import annotations

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling
from qwen3vl_edge.server.engines.protocol import ServedModel


def warm_up_request(loaded: ServedModel, logprobs: int | None = None) -> GenerateRequest:
    """Two tokens after a text and the smallest picture."""
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
