"""Ways to bring embeddings from one process's memory into another's tensors, as the wire bench times them.

A format turns the request into buffers, and the bytes that arrive into tensors; what carries them is the same socket
for all, but for HTTP and gRPC, which bring their own.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, MediaEmbeddings

# One picture of the 2B model: 196 visual tokens, 2048 wide, three DeepStack levels.
GRID, TOKENS, WIDTH, LEVELS = Grid(1, 28, 28), 196, 2048, 3
ANY = Limits(max_body_bytes=2**31)
Buffers = Sequence[memoryview | bytes | bytearray]
Arrays = list[NDArray[np.float16]]


@dataclass(frozen=True)
class Format:
    """One way.

    Attributes:
        encode: from arrays in host memory to what is sent.
        decode: from what arrived to torch tensors.
        most: images that it is asked to carry; text takes minutes with many.
    """

    encode: Callable[[Arrays], Buffers]
    decode: Callable[[memoryview], list[Any]]
    most: int = 16


def pictures(count: int) -> Arrays:
    """`count` pictures' worth of arrays, four each: float16 [196, 2048]."""
    generator = np.random.default_rng(0)
    shape = (TOKENS, WIDTH)
    return [generator.standard_normal(shape, np.float32).astype(np.float16) for _ in range(count * (1 + LEVELS))]


def request_of(arrays: Arrays) -> GenerateRequest:
    """The request that has them."""
    step = 1 + LEVELS
    media = tuple(
        MediaEmbeddings("image", GRID, arrays[at], tuple(arrays[at + 1 : at + step]))
        for at in range(0, len(arrays), step)
    )
    return GenerateRequest(None, np.arange(TOKENS * len(media) + 32), media)


def tensors_of(request: GenerateRequest) -> list[Any]:
    """Its embeddings as tensors, without a copy."""
    import torch

    return [torch.from_numpy(array) for item in request.media for array in item.arrays]


def _raw_decode(body: memoryview) -> list[Any]:
    import torch

    whole = np.frombuffer(body, np.float16).reshape(-1, TOKENS, WIDTH)
    return [torch.from_numpy(array) for array in whole]


def _json_encode(arrays: Arrays) -> Buffers:
    return [json.dumps([array.tolist() for array in arrays]).encode()]


def _json_decode(body: memoryview) -> list[Any]:
    import torch

    return [torch.tensor(rows, dtype=torch.float16) for rows in json.loads(bytes(body))]


def _base64_encode(arrays: Arrays) -> Buffers:
    return [json.dumps([base64.b64encode(array.data).decode() for array in arrays]).encode()]


def _base64_decode(body: memoryview) -> list[Any]:
    return _joined([base64.b64decode(text) for text in json.loads(bytes(body))])


def _msgpack_encode(arrays: Arrays) -> Buffers:
    import msgpack

    return [msgpack.packb([array.data.cast("B") for array in arrays])]


def _msgpack_decode(body: memoryview) -> list[Any]:
    import msgpack

    return _joined(msgpack.unpackb(body, max_bin_len=2**31 - 1))


def _torch_encode(arrays: Arrays) -> Buffers:
    import torch

    file = io.BytesIO()
    torch.save([torch.from_numpy(array) for array in arrays], file)
    return [file.getbuffer()]


def _torch_decode(body: memoryview) -> list[Any]:
    import torch

    tensors: list[Any] = torch.load(io.BytesIO(body), weights_only=True)
    return tensors


def _joined(parts: list[bytes]) -> list[Any]:
    import torch

    # torch wants memory that it may write; bytes are not.
    return [torch.from_numpy(np.frombuffer(bytearray(part), np.float16).reshape(TOKENS, WIDTH)) for part in parts]


FORMATS = {
    # What nothing can beat by much: the bytes copied once, and sent.
    "memcpy and send": Format(lambda arrays: [np.concatenate(arrays).view(np.uint8).data.cast("B")], _raw_decode),
    "ours": Format(
        lambda arrays: list(encode_request(request_of(arrays)).buffers),
        lambda body: tensors_of(decode_request(body, ANY)),
    ),
    "msgpack": Format(_msgpack_encode, _msgpack_decode),
    "torch.save": Format(_torch_encode, _torch_decode),
    "base64 in JSON": Format(_base64_encode, _base64_decode),
    "JSON lists": Format(_json_encode, _json_decode, most=4),
}
