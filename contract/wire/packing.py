"""Packed embeddings: codes and scales that unpack to the same floats, bit for bit, on every machine.

A tensor [n, D] is codes and scales [a, b], a = 1 or n, b a divisor of D: each scale applies to one row, or all rows,
and D / b neighbouring columns. The value is `float16(float32(code) * float32(scale))`; code and scale have few enough
bits that the product is exact in float32, so device and server compute the same numbers and the same hash of them.
Where a scale allows values beyond float16's 65,504, the medium's scales are float32, and so are its values: one rounded
float32 product each, the same everywhere too.

Scales by rows and groups of columns: Dettmers et al., LLM.int8() (arXiv 2208.07339) and QLoRA (arXiv 2305.14314).
The 8-bit float is E4M3 of Micikevicius et al. (arXiv 2209.05433), its largest value 448. bfloat16 saves no bytes: it is
for encoders whose values exceed float16's range, has one scale of 1 and unpacks to float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.formats.safetensors_layout import DTYPE_BYTES
from qwen3vl_edge.contract.wire.group_scales import least_error_scales

FLOAT16_MAX = 65504.0
TENSORS = 4  # of a medium of every released model: the embeddings and three DeepStack levels
Codes = NDArray[Any]
_ROWS = 16  # rows packed or unpacked at a time: their float32 copies fit in the CPU's cache


@dataclass(frozen=True)
class Packing:
    """How a tensor is packed.

    Attributes:
        dtype: the codes' dtype in the container.
        largest: magnitude of the largest code.
        group: columns that share a scale; 0 for a whole row.
        per_byte: codes in one element of the container.
        unpacked: numpy's dtype of the values.
        lowest: the lowest code.
        shrinks: scales that `pack` tries, as parts of the largest magnitude over the largest code; a receiver does not
            need to know them.
        finer: how the first tensors of a medium are packed: embeddings and the first DeepStack levels change answers
            most. None where all are packed alike.
        finer_tensors: how many they are.
    """

    name: str
    dtype: str
    largest: float
    group: int = 0
    per_byte: int = 1
    unpacked: str = "<f2"
    lowest: float = -math.inf
    shrinks: tuple[float, ...] = (1.0,)
    finer: Packing | None = None
    finer_tensors: int = 0

    @property
    def wide(self) -> Packing:
        """For values beyond float16's range: scales are float32, and so is what codes unpack to."""
        return replace(self, unpacked="<f4")

    @property
    def scale_dtype(self) -> str:
        """numpy's dtype of the scales."""
        return "<f4" if self.unpacked == "<f4" and self.dtype != "BF16" else "<f2"

    def of_tensor(self, index: int) -> Packing:
        """How a medium's tensor `index` is packed: 0 for the embeddings, k + 1 for DeepStack level k."""
        if self.finer is None or index >= self.finer_tensors:
            return self
        return replace(self.finer, name=self.name, unpacked=self.unpacked)

    def bytes_per_value(self, columns: int, tensors: int = TENSORS) -> float:
        """Bytes per value of a medium of so many tensors [n, `columns`], with their scales."""
        return sum(self.of_tensor(index)._bytes_per_value(columns) for index in range(tensors)) / tensors

    def _bytes_per_value(self, columns: int) -> float:
        return DTYPE_BYTES[self.dtype] / self.per_byte + 2 / (self.group or columns)


@dataclass(frozen=True)
class Packed:
    """One packed tensor.

    Attributes:
        codes: int8, uint8 or uint16 (bfloat16) [n, D / codes per byte].
        scales: float16 [a, b]; of a wide packing float32.
    """

    packing: Packing
    codes: Codes
    scales: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """[n, D], unpacked."""
        rows, columns = self.codes.shape
        return rows, columns * self.packing.per_byte

    @property
    def exceeds_float16(self) -> bool:
        """Whether float16 cannot hold the largest value."""
        reach = max(self.packing.largest, -self.packing.lowest)
        if float(self.scales.max(initial=0)) * reach <= FLOAT16_MAX:
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            values = unpack(replace(self, packing=self.packing.wide))
        # Written so that NaN exceeds it too.
        return not float(np.abs(values).max(initial=0)) <= FLOAT16_MAX

    @property
    def nbytes(self) -> int:
        return int(self.codes.nbytes + self.scales.nbytes)


_INT8 = Packing("int8", "I8", 127.0, lowest=-127.0)
# Three smaller scales take nearly all that fifty would (docs/reports/performance-log.md).
_INT4 = Packing("int4", "U8", 7.0, group=32, per_byte=2, lowest=-8.0, shrinks=(1.0, 0.94, 0.87, 0.8))

PACKINGS = {
    packing.name: packing
    for packing in (
        Packing("bf16", "BF16", math.inf, unpacked="<f4"),
        Packing("fp8", "F8_E4M3", 448.0, lowest=-448.0),
        _INT8,
        replace(_INT4, name="int8-int4", finer=_INT8, finer_tensors=2),
        _INT4,
    )
}

BASIS_PACKINGS = {"basis-int8": PACKINGS["int8"], "basis-int4": PACKINGS["int4"]}
"""Coefficients in the bundle's basis (`contract/wire/basis.py`), and how they are packed."""
WIRE_DTYPES = ("fp16", "fp32", *PACKINGS, *BASIS_PACKINGS)
"""Values of `--wire-dtype` and of the daemon's `wire_dtype`."""
FROM_FP32 = ("fp32", "bf16")
"""Dtypes that are made of the encoder's own values; the others of these cast to float16, where that holds them."""
HALF_ALONE = ("fp16", *BASIS_PACKINGS)
"""Dtypes that hold no values beyond float16's range."""


def bytes_per_value(wire_dtype: str, columns: int, tensors: int = TENSORS) -> float:
    """Bytes per value on the wire, of `tensors` in rows of `columns`; `wire_dtype` must be one that needs no basis."""
    packing = PACKINGS.get(wire_dtype)
    return {"fp16": 2.0, "fp32": 4.0}[wire_dtype] if packing is None else packing.bytes_per_value(columns, tensors)


def pack(values: NDArray[Any], packing: Packing) -> Packed:
    """Codes and scales of float16 or float32 [n, D]; scales are infinite where `exceeds_float16` asks for `wide`.

    Raises:
        WireError: D is not a multiple of the group size.
    """
    rows, columns = values.shape
    if packing.dtype == "BF16":
        return Packed(packing, _bf16_codes(values.astype(np.float32)), np.ones((1, 1), np.float16))
    group = packing.group or columns
    if columns % group or columns % packing.per_byte:
        raise WireError(f"embeddings cannot be packed as {packing.name}", expected=f"columns by {group}", got=columns)
    codes = np.empty((rows, columns // packing.per_byte), np.int8 if packing.dtype == "I8" else np.uint8)
    ends = packing.lowest, packing.largest
    scales = np.empty((rows, columns // group), packing.scale_dtype)
    searched = len(packing.shrinks) > 1
    if searched:
        groups = values.reshape(rows * (columns // group), group)
        scales[:] = least_error_scales(groups, ends, packing.shrinks, packing.scale_dtype).reshape(scales.shape)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        blocks = values[part].astype(np.float32).reshape(-1, columns // group, group)
        if not searched:
            with np.errstate(over="ignore"):
                scales[part] = np.abs(blocks).max(axis=2, initial=0) / packing.largest
        divisors = np.where(scales[part] == 0, np.float32(1), scales[part].astype(np.float32))[:, :, None]
        blocks /= divisors
        np.clip(blocks, *ends, out=blocks)
        codes[part] = _encode(blocks, packing).reshape(-1, codes.shape[1])
    return Packed(packing, codes, scales)


def unpack(packed: Packed) -> NDArray[Any]:
    """The values [n, D] of codes and scales: float16, or float32 for bfloat16 and for a wide packing."""
    rows, columns = packed.shape
    scales = packed.scales.astype(np.float32)
    values = np.empty((rows, columns), packed.packing.unpacked)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        codes = _decode(packed.codes[part], packed.packing)
        blocks = codes.reshape(codes.shape[0], scales.shape[1], columns // scales.shape[1])
        own = scales if scales.shape[0] == 1 else scales[part]
        values[part] = (blocks * own[:, :, None]).reshape(codes.shape)
    return values


def check_packed(packed: Packed, field: str) -> None:
    """Validate scales against their codes.

    Raises:
        WireError: the shapes do not match, or a scale is negative or not finite.
    """
    rows, columns = packed.shape
    a, b = packed.scales.shape
    if a not in (1, rows) or b == 0 or columns == 0 or columns % b:
        wanted = f"[1 or {rows}, a divisor of {columns}]"
        raise WireError("scales do not fit their codes", field=field, expected=wanted, got=[a, b])
    if not np.isfinite(packed.scales).all() or (packed.scales < 0).any():
        raise WireError("scales must be finite and non-negative", field=field)


def _encode(blocks: NDArray[np.float32], packing: Packing) -> Codes:
    if packing.dtype == "F8_E4M3":
        codes: Codes = _e4m3_codes()[blocks.astype(np.float16).view(np.uint16)]
        return codes
    whole = np.rint(blocks).astype(np.int8)
    if packing.per_byte == 1:
        return whole
    pairs = (whole + 8).astype(np.uint8).reshape(*whole.shape[:-1], whole.shape[-1] // 2, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def _decode(codes: Codes, packing: Packing) -> NDArray[np.float32]:
    if packing.dtype == "F8_E4M3":
        values: NDArray[np.float32] = e4m3_values()[codes]
        return values
    if packing.dtype == "BF16":
        wide: NDArray[np.float32] = (codes.astype(np.uint32) << 16).view(np.float32)
        return wide
    if packing.per_byte == 1:
        return codes.astype(np.float32)
    unpacked = np.empty((codes.shape[0], codes.shape[1] * 2), np.float32)
    unpacked[:, 0::2] = codes & 15
    unpacked[:, 1::2] = codes >> 4
    unpacked -= 8
    return unpacked


def _bf16_codes(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest, ties to even. NaN becomes infinity or NaN; the server rejects
    both."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@cache
def e4m3_values() -> NDArray[np.float32]:
    """The values of the 256 codes: sign, 4 exponent bits with bias 7, 3 fraction bits; 0x7f and 0xff are NaN."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10.0))
    magnitude[[0x7F, 0xFF]] = np.nan
    return np.where(codes >> 7, -magnitude, magnitude).astype(np.float32)


@cache
def _e4m3_codes() -> NDArray[np.uint8]:
    """The nearest code of each float16, ties to even; saturates at 448."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    magnitudes = np.nan_to_num(np.abs(halves).astype(np.float64), nan=0.0, posinf=448.0)
    values = e4m3_values()[:127].astype(np.float64)
    above = np.clip(np.searchsorted(values, magnitudes), 1, 126)
    low, high = values[above - 1], values[above]
    middle = (low + high) / 2
    nearest = np.where((magnitudes > middle) | ((magnitudes == middle) & (above % 2 == 0)), above, above - 1)
    return (nearest | np.where(np.signbit(halves), 0x80, 0)).astype(np.uint8)
