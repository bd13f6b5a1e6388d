"""Requests of random embeddings, and bodies as they travel: whole, or with a header that was tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling

WIDTH, LEVELS = 8, 3  # of `make_media`: columns, DeepStack levels
HeaderEdit = Callable[[dict[str, Any]], object]


def make_media(kind: str, grid: Grid, seed: int = 0, dtype: str = "float16") -> MediaEmbeddings:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((grid.tokens(2), WIDTH)).astype(dtype) for _ in range(LEVELS + 1)]
    return MediaEmbeddings(kind, grid, arrays[0], tuple(arrays[1:]), {"scale": 1.0})


def make_request(**changes: object) -> GenerateRequest:
    media = (make_media("image", Grid(1, 4, 6)), make_media("video", Grid(2, 4, 4), 1))
    values: dict[str, object] = {
        "model_hash": "ab" * 32,
        "input_ids": np.arange(40, dtype=np.int64),
        "media": media,
        "attention_mask": np.ones(40, dtype=np.int64),
        "sampling": Sampling(max_new_tokens=7, temperature=0.5, do_sample=True, seed=3),
        "stream": True,
        "request_id": "request-1",
    }
    return GenerateRequest(**{**values, **changes})  # type: ignore[arg-type]


def assert_same(left: GenerateRequest, right: GenerateRequest) -> None:
    assert (left.model_hash, left.sampling, left.stream, left.request_id) == (
        right.model_hash,
        right.sampling,
        right.stream,
        right.request_id,
    )
    np.testing.assert_array_equal(left.input_ids, right.input_ids)
    for mine, theirs in zip(left.media, right.media, strict=True):
        assert (mine.kind, mine.grid, mine.origin) == (theirs.kind, theirs.grid, theirs.origin)
        for a, b in zip((mine.embeds, *mine.deepstack), (theirs.embeds, *theirs.deepstack), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def body_of(request: GenerateRequest) -> bytes:
    """The request's body in one piece."""
    return bytes(encode_request(request))


def with_header(body: bytes, edit: HeaderEdit) -> bytes:
    """The body, its header's table changed in place by `edit`; the tensors' bytes stay."""
    length = int.from_bytes(body[:8], "little")
    table = json.loads(body[8 : 8 + length])
    edit(table)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + length :]


def with_document(body: bytes, **changes: object) -> bytes:
    """The body with these keys of its request document replaced."""

    def edit(table: dict[str, Any]) -> None:
        document = json.loads(table["__metadata__"]["request"])
        table["__metadata__"]["request"] = json.dumps({**document, **changes})

    return with_header(body, edit)
