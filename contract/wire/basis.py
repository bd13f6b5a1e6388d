"""A basis of a model's embeddings: rows are sent as coefficients, which decode bit-exactly the same on both ends.

Fitted in calibration to the encoder's outputs for real pictures (`calibration/wire_basis.py`), one per tensor: a mean
[D] and the r principal directions [r, D], each scaled to the square root of its coefficients' spread, so that one
scale for a row of coefficients suits strong and weak ones alike (halfway to whitening).

A row's value is `float16(mean + 2^(exponent - 12) * (steps @ directions))` with `steps = clip(rint(4096 * c), ±2^20)`
of its coefficients c. Steps have 20 bits, directions 15, and r is at most 2^12: every product and sum is a whole number
below 2^47, so float64 holds it exactly, in whatever order a library adds; then there is one rounded addition.

The file is a safetensors container: `mean.{k}` F32 [D], `directions.{k}` I16 [r, D], and in the metadata `basis`, JSON
with `version`, `model_hash` and `exponents`. Its sha256 is its name on the wire.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import ContractError, InputError, WireError
from qwen3vl_edge.contract.formats.safetensors_layout import build_header, header_length, parse_header
from qwen3vl_edge.contract.formats.strict_json import strict_object

BASIS_VERSION = 1
MAX_RANK = 2**12
MULTIPLE = 32  # ranks are multiples of it: a group of int4's scales
_STEPS = 2.0**12  # quantization steps per unit of a coefficient
_LARGEST_STEP = 2.0**20
_ROWS = 256  # at a time: float64 rows of a whole request would take four times its bytes


@dataclass(frozen=True)
class TensorBasis:
    """The basis of one tensor.

    Attributes:
        mean: float32 [D].
        directions: int16 [r, D], in units of 2^exponent.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.int16]
    exponent: int

    @property
    def rank(self) -> int:
        return len(self.directions)

    @cached_property
    def _whole(self) -> NDArray[np.float64]:
        return self.directions.astype(np.float64)

    @cached_property
    def _projection(self) -> NDArray[np.float32]:
        """[D, r]: the least-squares projection. Directions rounded to integers are not exactly orthogonal, and the
        error of a long one is not small compared with a short one's coefficient."""
        products = self._whole @ self._whole.T
        products[np.diag_indices(self.rank)] += 1.0  # a zero direction gets zeros; far below any other's length
        inverse = np.linalg.solve(products, self._whole).T * 2.0**-self.exponent
        return np.ascontiguousarray(inverse, dtype=np.float32)

    def coefficients(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """float32 [n, r] of float16 or float32 rows [n, D]."""
        return ((rows.astype(np.float32) - self.mean) @ self._projection).astype(np.float32, copy=False)

    def rows(self, coefficients: NDArray[Any]) -> NDArray[np.float16]:
        """float16 [n, D] of coefficients [n, r], bit-exact on every machine; overflow becomes infinity."""
        rows = np.empty((len(coefficients), len(self.mean)), np.float16)
        unit, mean = 2.0**self.exponent / _STEPS, self.mean.astype(np.float64)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            steps = np.rint(coefficients[part].astype(np.float64) * _STEPS)
            values = np.clip(steps, -_LARGEST_STEP, _LARGEST_STEP) @ self._whole
            values *= unit
            values += mean
            with np.errstate(over="ignore"):
                rows[part] = values
        return rows


@dataclass(frozen=True)
class Basis:
    """The bases of a model's tensors, in the order of `MediaEmbeddings.arrays`, and the sha256 of their file."""

    sha256: str
    model_hash: str
    tensors: tuple[TensorBasis, ...]

    @property
    def columns(self) -> int:
        return len(self.tensors[0].mean)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(tensor.rank for tensor in self.tensors)


Bases = Mapping[str, Basis]
"""The bases of a decoder, by sha256."""
NO_BASES: Bases = {}


def basis_file(tensors: Sequence[TensorBasis], model_hash: str) -> bytes:
    """The file content that `read_basis` reads."""
    named = [(f"mean.{index}", "F32", item.mean) for index, item in enumerate(tensors)]
    named += [(f"directions.{index}", "I16", item.directions) for index, item in enumerate(tensors)]  # type: ignore[misc]
    document = {"version": BASIS_VERSION, "model_hash": model_hash, "exponents": [item.exponent for item in tensors]}
    header = build_header([(name, dtype, array.shape) for name, dtype, array in named], {"basis": json.dumps(document)})
    return header + b"".join(np.ascontiguousarray(array).tobytes() for _, _, array in named)


def read_basis(path: Path, model_hash: str, field: str) -> Basis:
    """The bases in a file, for one model's embeddings.

    Raises:
        InputError: the file is missing, malformed or for another model; `field` is the option that names it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field=field) from None
    try:
        basis = parse_basis(content)
    except ContractError as error:
        raise InputError(
            f"{path} is not a basis file: {error.message}",
            field=field,
            remedy="Copy wire/basis-*.safetensors out of the device's bundle, or fit it again: qwen3vl-edge fit-basis.",
        ) from None
    if basis.model_hash != model_hash:
        raise InputError(
            f"{path} was fitted to another model's embeddings, or with a bundle of another release",
            field=field,
            expected=f"model hash {model_hash[:15]}…",
            got=f"{basis.model_hash[:15]}…",
            remedy="Export the bundle again and fit it again: qwen3vl-edge fit-basis.",
        )
    return basis


def bases_of(*bases: Basis | None) -> Bases:
    """Bases by sha256, for a decoder; None values are skipped."""
    return {basis.sha256: basis for basis in bases if basis is not None}


def parse_basis(content: bytes) -> Basis:
    """Parse the content of a basis file.

    Raises:
        WireError: names the fault.
    """
    view = memoryview(content)
    length = header_length(view)
    layout = parse_header(bytes(view[8 : 8 + length]), 8 + length)
    if layout.total_bytes != len(content):
        raise WireError(
            "file length does not match its tensors", field="basis", expected=layout.total_bytes, got=len(content)
        )
    document = strict_object(layout.metadata.get("basis", ""), "basis")
    exponents, model_hash = document.get("exponents"), document.get("model_hash")
    if document.get("version") != BASIS_VERSION or not isinstance(model_hash, str) or not _whole_numbers(exponents):
        raise WireError("unsupported layout", field="basis", expected=f"version {BASIS_VERSION}, exponents, model_hash")
    arrays = {}
    for name, entry in layout.tensors.items():
        dtype = {"F32": "<f4", "I16": "<i2"}.get(entry.dtype)
        if dtype is None:
            raise WireError("a tensor has the wrong dtype", field=name, expected="F32 or I16", got=entry.dtype)
        start = layout.data_start + entry.begin
        arrays[name] = np.frombuffer(view[start : start + entry.nbytes], dtype).reshape(entry.shape)
    try:
        tensors = tuple(
            TensorBasis(arrays.pop(f"mean.{index}"), arrays.pop(f"directions.{index}"), exponent)
            for index, exponent in enumerate(exponents)  # type: ignore[arg-type]
        )
    except KeyError as error:
        raise WireError("a tensor is missing", field=str(error)) from None
    _check(tensors, arrays)
    return Basis(hashlib.sha256(content).hexdigest(), model_hash, tensors)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(item) is int and -60 <= item <= 60 for item in values)


def _check(tensors: tuple[TensorBasis, ...], unexpected: Mapping[str, Any]) -> None:
    columns = tensors[0].mean.size
    for index, item in enumerate(tensors):
        rank = item.rank if item.directions.ndim == 2 else 0
        fits = item.mean.shape == (columns,) and item.directions.shape == (rank, columns)
        if not fits or (item.mean.dtype, item.directions.dtype) != (np.dtype("<f4"), np.dtype("<i2")):
            raise WireError("shapes or dtypes do not match", field=f"directions.{index}")
        if not 0 < rank <= min(columns, MAX_RANK) or rank % MULTIPLE:
            wanted = f"multiples of {MULTIPLE} up to {min(columns, MAX_RANK)}"
            raise WireError("bad rank", field=f"directions.{index}", expected=wanted, got=rank)
        if not np.isfinite(item.mean).all():
            raise WireError("the mean is not finite", field=f"mean.{index}")
    if unexpected:
        raise WireError("unexpected tensor", field=sorted(unexpected)[0])
