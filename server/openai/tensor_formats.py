"""A tensor in a chat: base64 of a `torch.save` file or of safetensors, distinguished by their first bytes."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import LimitError, WireError
from qwen3vl_edge.contract.formats import torch_file
from qwen3vl_edge.contract.formats.data_uri import joined_base64
from qwen3vl_edge.contract.formats.safetensors_layout import Layout, header_length, parse_header

CONTAINERS = "torch.save's ZIP file or safetensors"
MAX_HEADER_BYTES = 2**16
MAX_HEADER_VALUES = 10_000
_DTYPES = {"F16": "<f2", "F32": "<f4", "BF16": "<u2", "I32": "<i4", "I64": "<i8"}


def decode_base64(text: str, field: str, max_bytes: int) -> bytes:
    """Decode base64, with or without line breaks, after checking the decoded size against the limit.

    Raises:
        LimitError: more than `max_bytes`.
        WireError: not base64.
    """
    text = joined_base64(text)
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise LimitError(
            "data is larger than its grid and the limits allow",
            field=field,
            expected=f"at most {max_bytes} bytes",
            got=f"about {len(text) // 4 * 3}",
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError("not base64", field=field) from None


def read_tensor(data: bytes, field: str) -> NDArray[Any]:
    """The one tensor in `data`, mostly as a read-only view.

    Returns:
        float16, float32, int32 or int64; bfloat16 as float32.

    Raises:
        WireError: an unknown container, or not one tensor of such a dtype; names the part.
    """
    if data.startswith(torch_file.MAGIC):
        return torch_file.read_torch(data, field)
    return _read_safetensors(data, safetensors_layout(data, field), field)


def safetensors_layout(data: bytes, field: str) -> Layout:
    """The table of a safetensors file, validated against the file's size.

    Raises:
        WireError: not a safetensors file.
    """
    if data[8:9] != b"{":
        raise WireError("unknown tensor container", field=field, expected=CONTAINERS, got=f"bytes {data[:8]!a} …")
    try:
        length = header_length(data, MAX_HEADER_BYTES)
        layout = parse_header(data[8 : 8 + length], 8 + length, MAX_HEADER_VALUES)
    except WireError as error:
        raise WireError(f"not a safetensors file: {error.message}", field=field, got=error.got) from None
    if layout.total_bytes != len(data):
        raise WireError(
            "not a safetensors file: length does not match its tensors",
            field=field,
            expected=f"{layout.total_bytes} bytes",
            got=f"{len(data)} bytes",
        )
    return layout


def _read_safetensors(data: bytes, layout: Layout, field: str) -> NDArray[Any]:
    entries = list(layout.tensors.values())
    if len(entries) != 1 or entries[0].dtype not in _DTYPES:
        names = ", ".join(f"{entry.name} {entry.dtype}" for entry in entries)[:80]
        raise WireError("not one tensor", field=field, expected=f"one of {', '.join(_DTYPES)}", got=names or "none")
    entry = entries[0]
    begin = layout.data_start + entry.begin
    flat = np.frombuffer(memoryview(data)[begin : begin + entry.nbytes], dtype=_DTYPES[entry.dtype])
    if entry.dtype == "BF16":
        flat = torch_file.widened(flat)
    return flat.reshape(entry.shape)
