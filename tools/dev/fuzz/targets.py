"""What is mutated: by endpoint, requests that the server answers well. A new endpoint is one more row in `targets`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.wire.basis import MULTIPLE, Basis, TensorBasis, basis_file, parse_basis
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, PACKINGS
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, ModelShape, Sampling, pack_media
from qwen3vl_edge.tools.dev.fuzz.chats import chat_bodies

JSON = "application/json"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Target:
    """One request.

    Attributes:
        weight: how often it is chosen, beside the others.
        answered: the status of the request as it stands, unless held or kept things change it.
    """

    name: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    weight: int = 4
    answered: int = 200

    @property
    def is_json(self) -> bool:
        return ("Content-Type", JSON) in self.headers

    @property
    def is_binary(self) -> bool:
        return ("Content-Type", CONTENT_TYPE) in self.headers


def drawn_basis(shape: ModelShape) -> Basis:
    """Some directions of the model's embeddings, always the same: what the server under test holds."""
    rng = np.random.default_rng(5)
    drawn = rng.integers(-(2**15), 2**15, (1 + shape.deepstack_levels, MULTIPLE, shape.hidden_size), np.int16)
    mean = np.zeros(shape.hidden_size, np.float32)
    return parse_basis(basis_file([TensorBasis(mean, directions, -18) for directions in drawn], shape.model_hash))


def targets(shape: ModelShape) -> list[Target]:
    """Every endpoint, with bodies that fit the model. Those that bring embeddings stand before those that name them."""
    wide, clip = _medium("image", Grid(1, 4, 6), shape, 1), _medium("video", Grid(2, 4, 4), shape, 2)
    one, two = _request(shape, wide), _request(shape, wide, clip)
    small = _medium("image", Grid(1, 2, 4), shape, 3), _medium("video", Grid(2, 2, 2), shape, 4)
    binary, text = ("Content-Type", CONTENT_TYPE), ("Content-Type", JSON)
    put = f"/v1/embeddings/{wide.hash}"
    keyed = (binary, (HEADER, "a-key"))
    sampled = replace(
        two, sampling=Sampling(1, True, 0.7, 0.9, 20, 0.01, 1.1, 7, 0.5, -0.5, ((3, 1.0),)), attention_mask=_ones(two)
    )
    return [
        Target("generate, text", "POST", "/v1/generate", (binary,), _body(_request(shape)), 4),
        Target("generate, image", "POST", "/v1/generate", (binary,), _body(one), 12),
        Target("generate, image and clip", "POST", "/v1/generate", (binary,), _body(sampled), 12),
        Target("generate, streamed", "POST", "/v1/generate", (binary,), _body(replace(one, stream=True)), 6),
        Target("put", "PUT", put, (binary,), bytes(encode_medium(wide, shape.model_hash)), 12),
        Target("generate, by hash", "POST", "/v1/generate", (binary,), _body(two, str(wide.hash), str(clip.hash)), 12),
        *(
            Target(f"generate, {name}", "POST", "/v1/generate", (binary,), _body(_packed(two, name, shape)), 4)
            for name in (*PACKINGS, *BASIS_PACKINGS)
        ),
        Target("generate, keyed", "POST", "/v1/generate", keyed, _body(_request(shape)), 2),
        Target("generate, JSON", "POST", "/v1/generate", (text,), _json(_request(shape, *small)), 20),
        Target(
            "generate, JSON, streamed",
            "POST",
            "/v1/generate",
            (text,),
            _json(replace(_request(shape, small[0]), stream=True)),
            4,
        ),
        *(Target(name, "POST", CHAT, (text,), body, 6) for name, body in chat_bodies(*small, shape.model_hash)),
        Target("held", "GET", put, weight=2),
        Target("forget", "DELETE", "/v1/generate", ((HEADER, "a-key"),), weight=1, answered=204),
        Target("models", "GET", "/v1/models", weight=1),
        Target("openapi", "GET", "/openapi.json", weight=1),
        Target("ready", "GET", "/readyz", weight=1),
    ]


def _medium(kind: str, grid: Grid, shape: ModelShape, seed: int) -> MediaEmbeddings:
    rng = np.random.default_rng(seed)
    size = (grid.tokens(shape.merge_size), shape.hidden_size)
    arrays = [rng.standard_normal(size).astype(np.float16) for _ in range(1 + shape.deepstack_levels)]
    media = MediaEmbeddings(kind, grid, arrays[0], tuple(arrays[1:]), {"native": str(grid)})
    return replace(media, hash=embedding_hash(media, shape.model_hash))


def _request(shape: ModelShape, *media: MediaEmbeddings) -> GenerateRequest:
    low = min(shape.image_token_id, shape.video_token_id, 40)
    ids: list[int] = [low // 2, low // 2 + 1]
    for item in media:
        frames = item.grid.t if item.kind == "video" else 1
        token = shape.video_token_id if item.kind == "video" else shape.image_token_id
        for _ in range(frames):
            ids += [token] * (item.grid.tokens(shape.merge_size) // frames) + [low // 2]
    return GenerateRequest(shape.model_hash, np.array(ids, np.int64), media, sampling=Sampling(max_new_tokens=1))


def _packed(request: GenerateRequest, name: str, shape: ModelShape) -> GenerateRequest:
    basis = drawn_basis(shape) if name in BASIS_PACKINGS else None
    packing = {**PACKINGS, **BASIS_PACKINGS}[name]
    media = tuple(replace(pack_media(item, packing, basis), hash=None) for item in request.media)
    return replace(request, media=media)


def _ones(request: GenerateRequest) -> Any:
    return np.ones(request.input_ids.shape, np.int64)


def _body(request: GenerateRequest, *by_hash: str) -> bytes:
    return bytes(encode_request(request, by_hash))


def _json(request: GenerateRequest) -> bytes:
    levels = range(len(request.media[0].deepstack))
    document = {
        "input_ids": request.input_ids.tolist(),
        "vision_embeddings": [item.embeds.round(2).tolist() for item in request.media],
        "deepstack_embeddings": [
            [item.deepstack[level].round(2).tolist() for item in request.media] for level in levels
        ],
        "image_grid_thw": [item.grid.as_list() for item in request.of_kind("image")],
        "video_grid_thw": [item.grid.as_list() for item in request.of_kind("video")],
        "max_new_tokens": 1,
        "stream": request.stream,
    }
    return json.dumps(document).encode()
