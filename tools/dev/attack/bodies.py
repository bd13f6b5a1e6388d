"""Bodies for the server that become large, or slow, once they are decompressed, parsed or unpacked."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling
from qwen3vl_edge.tools.dev.attack.attack import Attack, Outcome, Shot, volley
from qwen3vl_edge.tools.dev.attack.target import MIB, Target

GENERATE, CHAT = "/v1/generate", "/v1/chat/completions"


def _zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(content)


def zstd_bomb(_: Target) -> Shot:
    """8 kB that were 256 MiB."""
    return Shot(GENERATE, _zstd(bytes(256 * MIB)), CONTENT_TYPE, {"Content-Encoding": "zstd"})


def zstd_json(_: Target) -> Shot:
    """6 kB of nested lists, which were 33 million lists once parsed."""
    return Shot(GENERATE, _zstd(b'{"input_ids":[' + b"[]," * (20 * MIB) + b"1]}"), headers={"Content-Encoding": "zstd"})


def many_values(path: str) -> Any:
    """A megabyte of values of two or three characters each."""
    lists = b"[]," * 330_000 + b"1"
    body = b'{"input_ids":[1],"vision_embeddings":[' + lists + b"]}"
    return lambda _: Shot(path, body if path == GENERATE else b'{"messages":[' + lists + b"]}")


def most_lists(_: Target) -> Shot:
    """As many empty lists as a body may have values."""
    return Shot(GENERATE, b'{"input_ids":[1],"vision_embeddings":[' + b"[]," * 32_000 + b"1]}")


def most_numbers(_: Target) -> Shot:
    """As many numbers as a body may have values."""
    return Shot(
        GENERATE, b'{"input_ids":[1],"image_grid_thw":[[1,2,2]],"vision_embeddings":[[' + b"0," * 295_000 + b"1]]}"
    )


def many_errors(path: str) -> Any:
    """As many wrong values as a body may have: each has an error of its own."""
    if path == CHAT:
        parts = b",".join([b'{"type":1,"a":2}'] * 4_500)
        return lambda _: Shot(path, b'{"messages":[{"role":"user","content":[' + parts + b"]}]}")
    names = b",".join(b'"%d":1' % number for number in range(80_000))
    return lambda _: Shot(path, b'{"input_ids":["a"],' + names + b"}")


def doubled_names(_: Target) -> Shot:
    """A header whose last name is its first: looked for in quadratic time, 176 kB took 11 s."""
    names = ",".join(f'"n{number}":0' for number in range(14_000))
    return Shot(GENERATE, _container("{" + names + ',"n13999":0}'), CONTENT_TYPE)


def many_names(_: Target) -> Shot:
    """A header of a megabyte of names."""
    return Shot(GENERATE, _container("{" + ",".join(f'"{number}":0' for number in range(95_000)) + "}"), CONTENT_TYPE)


def packed_nothing(target: Target) -> Shot:
    """Codes of 2^40 rows and no columns: 4 kB, unpacked row by row."""
    rows = 2**40
    media = [{"kind": "image", "levels": 3, "origin": {}, "packing": "int8"}]
    document = {"version": 3, "model_hash": target.model_hash, "media": media}
    names = ["embeds.0", *(f"deepstack.0.{level}" for level in range(3))]
    table: dict[str, Any] = {"__metadata__": {"request": json.dumps(document)}}
    table["input_ids"] = {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}
    table["grid_thw"] = {"dtype": "I32", "shape": [1, 3], "data_offsets": [4, 16]}
    at = 16
    for name in names:
        table[name] = {"dtype": "I8", "shape": [rows, 0], "data_offsets": [at, at]}
        table[f"{name}.scales"] = {"dtype": "F16", "shape": [1, 1], "data_offsets": [at, at + 2]}
        at += 2
    numbers = np.array([1, 1, 2, 2], np.int32).tobytes() + np.ones(4, np.float16).tobytes()
    return Shot(GENERATE, _container(json.dumps(table)) + numbers, CONTENT_TYPE)


def media_by_hash(target: Target, times: int, at_once: int) -> Outcome:
    """64 different pictures of 1,024 visual tokens by name: four times the visual tokens of a request."""
    width, grid = _width(target), Grid(1, 64, 64)
    names = [_hold(target, width, grid, seed) for seed in range(4)]
    media = tuple(
        MediaEmbeddings("image", grid, np.empty((0, width), np.float16), (), hash=names[index % 4])
        for index in range(64)
    )
    request = GenerateRequest(target.model_hash, np.zeros(1, np.int64), media, sampling=Sampling(max_new_tokens=1))
    body = bytes(encode_request(request, names))
    return volley(lambda _: Shot(GENERATE, body, CONTENT_TYPE))(target, times, at_once)


def _hold(target: Target, width: int, grid: Grid, seed: int) -> str:
    import httpx

    rows = np.random.default_rng(seed).standard_normal((4, grid.tokens(2), width)).astype(np.float16)
    medium = MediaEmbeddings("image", grid, rows[0], tuple(rows[1:]))
    name = embedding_hash(medium, target.model_hash)
    body = bytes(encode_medium(MediaEmbeddings("image", grid, rows[0], tuple(rows[1:]), hash=name), target.model_hash))
    answer = httpx.put(f"{target.url}/v1/embeddings/{name}", content=body, headers={"Content-Type": CONTENT_TYPE})
    answer.raise_for_status()
    return name


def _width(target: Target) -> int:
    import httpx

    return int(httpx.get(f"{target.url}/readyz").json()["hidden_size"])


def long_text(characters: int) -> Any:
    """A chat of so many characters of text."""
    text = "all work and no play " * (characters // 21)
    body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 1}).encode()
    return lambda _: Shot(CHAT, body)


def picture_bomb(_: Target) -> Shot:
    """17 kB that are 144 million pixels, for a server that takes pictures."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}] * 8
    return Shot(CHAT, json.dumps({"messages": [{"role": "user", "content": content}]}).encode())


def large_bodies(_: Target) -> Shot:
    """64 MiB of a binary body that is no request: as large as the claim says, and of no use."""
    return Shot(GENERATE, (2**20).to_bytes(8, "little") + bytes(64 * MIB), CONTENT_TYPE)


def _container(table: str) -> bytes:
    text = table.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


ATTACKS = (
    Attack("zstd-bomb", "server", volley(zstd_bomb)),
    Attack("zstd-json", "server", volley(zstd_json)),
    Attack("json-values", "server", volley(many_values(GENERATE))),
    Attack("json-lists", "server", volley(most_lists)),
    Attack("json-numbers", "server", volley(most_numbers)),
    Attack("json-names", "server", volley(many_errors(GENERATE))),
    Attack("chat-values", "server", volley(many_values(CHAT))),
    Attack("chat-errors", "server", volley(many_errors(CHAT))),
    Attack("doubled-names", "server", volley(doubled_names)),
    Attack("many-names", "server", volley(many_names)),
    Attack("packed-nothing", "server", volley(packed_nothing)),
    Attack("media-by-hash", "server", media_by_hash),
    Attack("long-text", "server", volley(long_text(MIB))),
    Attack("longest-text", "server", volley(long_text(261_000))),
    Attack("large-bodies", "server", volley(large_bodies)),
    Attack("picture-bomb", "server", volley(picture_bomb), {"allow_pixels": True}),
)
