"""The hash that names one picture's embeddings: the sha256 of a byte form that both ends can compute.

The form, in bytes, one part after another:

    "qwen3vl-edge embeddings 1\n" + model_hash + "\n" + grid as "TxHxW" + "\n"
    then for `embeds` and for each DeepStack level in order:
    dtype ("F16" or "F32") + " " + shape as "nxD" + "\n" + the tensor's bytes, little-endian, row by row

The kind is not hashed: a medium is identified by its content. The hash alone reveals nothing about the picture.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.wire.request import MediaEmbeddings

_DTYPES = {"float16": "F16", "float32": "F32"}
HASH_FORM = "64 characters of 0-9a-f"
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


def embedding_hash(media: MediaEmbeddings, model_hash: str) -> str:
    """64 hexadecimal digits.

    Args:
        media: its `embeds` and `deepstack` in float16 or float32.
        model_hash: hash of the model that produced them.

    Raises:
        WireError: a dtype that the wire format does not support.
    """
    digest = hashlib.sha256(f"qwen3vl-edge embeddings 1\n{model_hash}\n{media.grid}\n".encode())
    for array in media.arrays:
        name = _DTYPES.get(array.dtype.name)
        if name is None:
            raise WireError("embeddings have the wrong dtype", expected="F16 or F32", got=array.dtype)
        digest.update(f"{name} {'x'.join(str(size) for size in array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def is_hash(value: object) -> bool:
    """Whether `value` has the form of an embedding hash."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def check_hash(field: str, media: MediaEmbeddings, model_hash: str) -> None:
    """Compare embeddings with the hash they were sent with; without a hash there is nothing to check.

    Raises:
        WireError: the hashes differ.
    """
    if media.hash is not None and (actual := embedding_hash(media, model_hash)) != media.hash:
        raise WireError("the hash does not match the embeddings", field=field, expected=actual, got=media.hash)
