"""What the devices of a fleet ask: texts of several lengths with pictures of several sizes, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, ModelShape, Sampling

GRIDS = ((1, 16, 16), (1, 16, 24), (1, 28, 28), (1, 8, 12))
SHARES = (4, 3, 2, 1)
PICTURES, PICTURE_SHARES = (1, 1, 1, 2, 0), (1, 1, 1, 1, 1)
TEXT_TOKENS = (12, 60)


@dataclass(frozen=True)
class Mix:
    """How many requests and how long their answers may be."""

    count: int
    new_tokens: int
    seed: int = 0


def make_requests(mix: Mix, shape: ModelShape, texts: range) -> list[GenerateRequest]:
    """Requests with random embeddings in float16.

    Args:
        texts: ids of ordinary tokens.
    """
    rng = random.Random(mix.seed)
    return [_request(rng, index, mix, shape, texts) for index in range(mix.count)]


def _request(rng: random.Random, index: int, mix: Mix, shape: ModelShape, texts: range) -> GenerateRequest:
    media = []
    ids: list[int] = []
    for _ in range(rng.choices(PICTURES, PICTURE_SHARES)[0]):
        grid = Grid(*rng.choices(GRIDS, SHARES)[0])
        media.append(_picture(grid, rng.randrange(2**31), shape))
        ids += [rng.choice(texts), *[shape.image_token_id] * grid.tokens(shape.merge_size), rng.choice(texts)]
    ids += [rng.choice(texts) for _ in range(rng.randint(*TEXT_TOKENS))]
    return GenerateRequest(
        model_hash=shape.model_hash,
        input_ids=np.array(ids, dtype=np.int64),
        media=tuple(media),
        sampling=Sampling(max_new_tokens=mix.new_tokens),
        stream=True,
        request_id=f"load-{mix.seed}-{index}",
    )


def _picture(grid: Grid, seed: int, shape: ModelShape) -> MediaEmbeddings:
    numbers = np.random.default_rng(seed)
    size = (grid.tokens(shape.merge_size), shape.hidden_size)
    levels = [
        numbers.standard_normal(size, dtype=np.float32).astype(np.float16) for _ in range(1 + shape.deepstack_levels)
    ]
    return MediaEmbeddings("image", grid, levels[0], tuple(levels[1:]))
