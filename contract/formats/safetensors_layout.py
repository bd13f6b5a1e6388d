"""The safetensors container: an 8-byte length, a JSON table of tensors, then their bytes.

Strict on purpose: the checkpoint reader and the wire decoder rely on the offsets that this module validates.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.formats.strict_json import strict_object

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_MAX_ELEMENTS = 2**59  # of one numpy array
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the table; `begin` and `end` are byte offsets from the start of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Layout:
    """A parsed header: where the data section starts, its tensors in offset order, and the metadata."""

    data_start: int
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole container."""
        return self.data_start + max((entry.end for entry in self.tensors.values()), default=0)


def header_length(prefix: bytes | memoryview, limit: int = MAX_HEADER_BYTES) -> int:
    """The header's length from the first 8 bytes.

    Raises:
        WireError: fewer than 8 bytes, or a length of 0 or above `limit`.
    """
    if len(prefix) < 8:
        raise WireError("body is truncated", field="header", expected="at least 8 bytes", got=f"{len(prefix)} bytes")
    length = int.from_bytes(bytes(prefix[:8]), "little")
    if not 2 <= length <= limit:
        raise WireError("header length is out of range", field="header", expected=f"2 to {limit}", got=length)
    return length


def parse_header(text: bytes, data_start: int, max_values: int | None = None) -> Layout:
    """Parse and check the JSON table: known dtypes, sizes that match shapes, no gap, no overlap.

    Args:
        max_values: the most JSON values of an untrusted table.

    Raises:
        WireError: names the tensor and the fault.
        LimitError: more than `max_values` values.
    """
    table = strict_object(text, "header", max_values)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WireError("metadata is not a map of strings", field="__metadata__")
    entries = sorted((_entry(name, value) for name, value in table.items()), key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise WireError(
                f"tensor {entry.name!r} leaves a gap or overlaps",
                field=entry.name,
                expected=f"offset {position}",
                got=entry.begin,
            )
        position = entry.end
    return Layout(data_start, {entry.name: entry for entry in entries}, metadata)


def _entry(name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WireError(f"tensor {name!r} is malformed", field=name, expected="dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise WireError(f"tensor {name!r} has an unknown dtype", field=name, got=repr(dtype)[:80])
    for label, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise WireError(f"tensor {name!r} has a malformed {label}", field=name, got=repr(numbers)[:80])
    if len(offsets) != 2 or len(shape) > 8:
        raise WireError(f"tensor {name!r} is malformed", field=name, expected="2 offsets and at most 8 dimensions")
    if math.prod(max(number, 1) for number in shape) > _MAX_ELEMENTS:  # a size of 0 would hide an enormous other one
        raise WireError(f"tensor {name!r} has too many elements", field=name, got=repr(shape)[:80])
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise WireError(
            f"tensor {name!r} has a size that does not match its shape",
            field=name,
            expected=f"{size} bytes for {dtype} {shape}",
            got=f"{offsets[1] - offsets[0]} bytes",
        )
    return TensorEntry(name, dtype, tuple(shape), offsets[0], offsets[1])


def build_header(entries: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The length and JSON table for consecutive tensors, padded to 8 bytes with spaces."""
    table: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, dtype, shape in entries:
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
