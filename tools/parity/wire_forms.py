"""Every form that embeddings have on the wire: what the server computes with, beside what the encoder gave.

A form rounds, by design; by how much follows from its arithmetic (contract/wire/packing.py), value by value. An error
beyond that is a fault of the codec or of the order of tensors, whatever the cosine says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.distance import Distance, distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.wire.basis import Basis, TensorBasis, bases_of
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, FROM_FP32, PACKINGS, WIRE_DTYPES, Packing
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, pack_media
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings

# Half a unit in the last place of 1: float32, float16 and bfloat16 have 24, 11 and 8 bits, E4M3 has 4.
_FP32, _FP16, _BF16, _E4M3 = 2.0**-24, 2.0**-11, 2.0**-8, 2.0**-4
_TINY = 2.0**-25  # half of float16's smallest step
_E4M3_TINY = 2.0**-10
_BASIS_STEP = 2.0**-13  # half a step of a coefficient (contract/wire/basis.py)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class WireRow:
    """One output in one form, worst over the grids.

    Attributes:
        distance: of the values that the server computes with from the encoder's own.
        steps: the largest error over the largest that the form's arithmetic explains there: at most 1 in a sound form.
    """

    form: str
    output: str
    grids: int
    distance: Distance
    steps: float

    @property
    def passed(self) -> bool:
        """False for NaN."""
        return self.steps <= 1


def measure_wire_forms(
    embeddings: dict[Grid, Embeddings],
    names: Sequence[str],
    model_hash: str,
    basis: Basis | None,
    progress: Callable[[str], None] = lambda form: None,
) -> tuple[list[WireRow], dict[str, str]]:
    """Encode, decode and compare in every form.

    Args:
        embeddings: of one picture or clip per grid.
        names: of the outputs, in order.
        basis: the bundle's; None where it has none.

    Returns:
        The rows, and why a form has none.
    """
    rows: list[WireRow] = []
    without: dict[str, str] = {}
    for form in WIRE_DTYPES:
        if form in BASIS_PACKINGS and basis is None:
            without[f"wire form {form}"] = "the bundle has no basis"
            continue
        progress(form)
        try:
            found = [
                _measure(form, grid, item, names, model_hash, basis if form in BASIS_PACKINGS else None)
                for grid, item in embeddings.items()
            ]
        except ContractError as error:  # a value or a width that the form does not take
            without[f"wire form {form}"] = error.message
            continue
        rows += [_worst(list(of_output)) for of_output in zip(*found, strict=True)]
    return rows, without


def _worst(rows: Sequence[WireRow]) -> WireRow:
    worst = rows[0]
    for row in rows[1:]:
        steps = float(np.maximum(worst.steps, row.steps))
        worst = replace(worst, grids=worst.grids + 1, distance=worst.distance.worst(row.distance), steps=steps)
    return worst


def _measure(
    form: str, grid: Grid, item: Embeddings, names: Sequence[str], model_hash: str, basis: Basis | None
) -> list[WireRow]:
    own = item.for_wire(form)  # as the device makes it
    arrays = [own.embeds, *own.deepstack]
    if form in FROM_FP32:
        arrays = [array.astype(np.float32, copy=False) for array in arrays]
    media = MediaEmbeddings("image" if grid.t == 1 else "video", grid, arrays[0], tuple(arrays[1:]))
    packing = BASIS_PACKINGS[form] if basis is not None else PACKINGS.get(form)
    if packing is not None:
        media = pack_media(media, packing, basis)
    request = GenerateRequest(model_hash, np.zeros(1, np.int64), (media,))
    (received,) = decode_request(bytes(encode_request(request)), bases=bases_of(basis)).media
    tensors: Iterable[TensorBasis | None] = (None,) * len(names) if basis is None else basis.tensors
    rows = []
    each = zip(names, (item.embeds, *item.deepstack), received.arrays, tensors, strict=True)
    for index, (name, value, got, tensor) in enumerate(each):
        values = value.astype(np.float64)
        if tensor is None:
            wanted, explained = values, explained_error(values, form, index)
        else:
            wanted, explained = _projected(values, tensor, BASIS_PACKINGS[form])
        steps = float((np.abs(got.astype(np.float64) - wanted) / explained).max())
        rows.append(WireRow(form, name, 1, distance(got, value), steps))
    return rows


def explained_error(values: Values, form: str, tensor: int = 0) -> Values:
    """The largest error that a form's arithmetic explains of each value [n, D] of a medium's tensor."""
    size = np.abs(values)
    if form == "fp32":
        return _FP32 * size + np.finfo(np.float32).tiny
    if form == "fp16":
        return _FP16 * size + _TINY
    if form == "bf16":
        return _BF16 * size + np.finfo(np.float32).tiny
    code = _code_error(values, PACKINGS[form].of_tensor(tensor))
    # Rounded to float16 before it is packed, and after it is unpacked.
    return code + _FP16 * (2 * size + code) + 2 * _TINY


def _code_error(values: Values, packing: Packing) -> Values:
    """Half the distance of two codes, times their scale, which is itself rounded to float16; or what the smallest
    scale that a sender may choose clips of the value, where that is more."""
    rows, columns = values.shape
    signed = values.reshape(rows, -1, packing.group or columns)
    blocks = np.abs(signed)
    scales = blocks.max(axis=2, keepdims=True) * (1 + 2 * _FP16) / packing.largest + _TINY
    if packing.dtype == "F8_E4M3":
        return np.asarray(np.maximum(_E4M3 * blocks * (1 + 2 * _FP16), _E4M3_TINY * scales).reshape(rows, columns))
    smallest = (scales - _TINY) * (1 - 2 * _FP16) ** 2 * packing.shrinks[-1] - _TINY
    reach = np.where(signed < 0, -packing.lowest, packing.largest) * smallest
    return np.asarray(np.maximum(scales / 2, blocks - reach).reshape(rows, columns))


def _projected(values: Values, tensor: TensorBasis, packing: Packing) -> tuple[Values, Values]:
    """The values' projection on the basis, and what packing its coefficients explains of an error in each."""
    coefficients = tensor.coefficients(values.astype(np.float16))
    projection = tensor.rows(coefficients).astype(np.float64)
    exact = coefficients.astype(np.float64)
    code = _code_error(exact, packing)
    step = code + _FP16 * (np.abs(exact) + code) + 2 * _BASIS_STEP + _TINY
    spread = np.abs(tensor.directions.astype(np.float64)) * 2.0**tensor.exponent
    moved = step @ spread
    return projection, moved + _FP16 * (2 * np.abs(projection) + moved) + 2 * _TINY
