"""Encode and decode one picture or clip: its tensors and its document entry (`contract/wire/codec.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import LimitError, ModelMismatchError, WireError
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases, Basis
from qwen3vl_edge.contract.wire.embedding_hash import HASH_FORM, is_hash
from qwen3vl_edge.contract.wire.packing import PACKINGS, Packed, Packing, check_packed, unpack
from qwen3vl_edge.contract.wire.request import KINDS, Limits, MediaEmbeddings, MediaReference, tensor_names

PACKED_VERSION = 3  # for bodies with packed embeddings
BASIS_VERSION = 4  # for bodies with coefficients in a basis
WIDE_VERSION = 5  # for bodies with packed embeddings beyond float16's range
MIXED_VERSION = 6  # for bodies whose media are packed by tensor
WIDE_VALUES = "F32"  # a medium's `values`: what its codes unpack to
SCALES = ".scales"
MAX_LEVELS = 64

NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "<u1", "I8": "<i1"}
DTYPE_NAMES = {np.dtype(value): key for key, value in NUMPY_DTYPES.items()}
NUMPY_DTYPES |= {"F8_E4M3": "<u1", "BF16": "<u2"}  # numpy has no such types
_MESSAGE_NAMES = {**DTYPE_NAMES, np.dtype("<u2"): "BF16"}
Named = tuple[str, NDArray[Any], str | None]  # name, array, and the wire dtype if numpy has no such type


def medium_tensors(index: int, item: MediaEmbeddings) -> list[Named]:
    """The wire tensors of a request's medium `index`."""
    names = tensor_names(index, len(item.deepstack))
    if not item.packed:
        return [(name, array, None) for name, array in zip(names, item.arrays, strict=True)]
    codes: list[Named] = [
        (name, packed.codes, packed.packing.dtype) for name, packed in zip(names, item.packed, strict=True)
    ]
    return codes + [(name + SCALES, packed.scales, None) for name, packed in zip(names, item.packed, strict=True)]


def medium_item(item: MediaEmbeddings, named: bool) -> dict[str, Any]:
    """The medium's entry in the document; with `named` by its hash, without tensors."""
    if named:
        return {"kind": item.kind, "by_hash": True, "hash": item.hash, "origin": item.origin}
    entry = {"kind": item.kind, "levels": len(item.deepstack), "origin": item.origin}
    if item.packed:
        entry["packing"] = item.packed[0].packing.name
        if item.wide_packed:
            entry["values"] = WIDE_VALUES
    if item.basis is not None:
        entry["basis"] = item.basis
    return entry if item.hash is None else {**entry, "hash": item.hash}


def take(arrays: dict[str, NDArray[Any]], name: str, dtypes: tuple[str, ...], rank: int) -> NDArray[Any]:
    """Take a tensor out of `arrays`.

    Raises:
        WireError: the tensor is missing or has the wrong dtype or rank.
    """
    if name not in arrays:
        raise WireError(f"tensor {name!r} is missing", field=name)
    array = arrays.pop(name)
    if array.dtype not in [np.dtype(dtype) for dtype in dtypes] or array.ndim != rank:
        names = " or ".join(_MESSAGE_NAMES[np.dtype(dtype)] for dtype in dtypes)
        raise WireError(
            f"tensor {name!r} has the wrong dtype or rank",
            field=name,
            expected=f"{names} of rank {rank}",
            got=f"{_MESSAGE_NAMES[array.dtype]} of shape {list(array.shape)}",
        )
    return array


@dataclass(frozen=True)
class DeclaredMedia:
    """A picture or clip as its body declares it: nothing is unpacked yet, nor looked up.

    Attributes:
        index: its index among the request's media.
        hash: as sent, None without one.
        by_hash: it is named by its hash, without tensors.
        tensors: as sent, views of the body.
        basis: the basis of its coefficients; None if its tensors are the rows themselves.
    """

    index: int
    kind: str
    grid: Grid
    origin: dict[str, Any]
    hash: str | None
    by_hash: bool = False
    tensors: tuple[NDArray[Any] | Packed, ...] = ()
    basis: Basis | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Shapes of the embeddings and of each DeepStack level once unpacked; None if it is named by its hash."""
        if self.by_hash:
            return None
        if self.basis is not None:
            return tuple((tensor.shape[0], self.basis.columns) for tensor in self.tensors)
        return tuple(tensor.shape for tensor in self.tensors)

    def open(self, keep_packed: bool = False) -> MediaEmbeddings | MediaReference:
        """The embeddings, unpacked, or the reference to them.

        Raises:
            WireError: scales do not fit their codes, or are negative or not finite.
        """
        if self.by_hash:
            return MediaReference(self.index, self.kind, self.grid, str(self.hash), self.origin)
        packed = tuple(tensor for tensor in self.tensors if isinstance(tensor, Packed))
        for name, tensor in zip(tensor_names(self.index, len(packed) - 1), packed, strict=False):
            check_packed(tensor, name + SCALES)
        rows = [unpack(tensor) if isinstance(tensor, Packed) else tensor for tensor in self.tensors]
        if self.basis is not None:
            rows = [tensor.rows(own) for own, tensor in zip(rows, self.basis.tensors, strict=True)]
        basis = self.basis.sha256 if self.basis is not None and keep_packed else None
        embeds, *deepstack = rows
        return MediaEmbeddings(
            self.kind,
            self.grid,
            embeds,
            tuple(deepstack),
            self.origin,
            self.hash,
            packed if keep_packed else (),
            basis,
        )


def declare_media(
    document: dict[str, Any], arrays: dict[str, NDArray[Any]], limits: Limits, bases: Bases = NO_BASES
) -> list[DeclaredMedia]:
    """The document's media; their tensors are removed from `arrays`.

    Raises:
        WireError, LimitError, ModelMismatchError: as `decode_request` in `contract/wire/codec.py`.
    """
    items = document["media"]
    if not items:
        return []
    _check_unpacked_size(items, document["version"], arrays, limits, bases)
    grids = take(arrays, "grid_thw", ("<i4", "<i8"), 2)
    if grids.shape != (len(items), 3):
        raise WireError(
            "grid_thw does not match the media list", field="grid_thw", expected=[len(items), 3], got=list(grids.shape)
        )
    return [
        _declare(index, item, Grid(*(int(value) for value in grids[index])), arrays, bases)
        for index, item in enumerate(items)
    ]


def _declare(index: int, item: Any, grid: Grid, arrays: dict[str, NDArray[Any]], bases: Bases) -> DeclaredMedia:
    if not isinstance(item, dict) or item.get("kind") not in KINDS:
        raise WireError("media item has no kind", field=f"media.{index}.kind", expected=" or ".join(KINDS))
    kind, name, by_hash, origin = item["kind"], item.get("hash"), item.get("by_hash", False), item.get("origin", {})
    if (name is not None or by_hash) and not is_hash(name):
        raise WireError("invalid embedding hash", field=f"media.{index}.hash", expected=HASH_FORM, got=repr(name)[:80])
    if type(by_hash) is not bool or not isinstance(origin, dict):
        raise WireError("media item is malformed", field=f"media.{index}", expected="by_hash a bool, origin a map")
    if by_hash:
        if "levels" in item:
            raise WireError("media item by hash has levels", field=f"media.{index}.levels")
        return DeclaredMedia(index, kind, grid, origin, name, by_hash=True)
    levels = item.get("levels")
    if type(levels) is not int or not 0 <= levels <= MAX_LEVELS:
        raise WireError(
            "media item is malformed", field=f"media.{index}", expected=f"levels (0 to {MAX_LEVELS}) and origin"
        )
    names = tensor_names(index, levels)
    if (packing := item.get("packing")) is None:
        if "basis" in item:
            raise WireError("a basis without a packing", field=f"media.{index}.basis", expected="a packing too")
        if "values" in item:
            raise WireError("values without a packing", field=f"media.{index}.values", expected="a packing too")
        plain = tuple(take(arrays, tensor, ("<f2", "<f4"), 2) for tensor in names)
        return DeclaredMedia(index, kind, grid, origin, name, tensors=plain)
    how = PACKINGS[packing] if item.get("values") is None else PACKINGS[packing].wide
    packed = tuple(_packed(arrays, tensor, how.of_tensor(index)) for index, tensor in enumerate(names))
    basis = None if item.get("basis") is None else bases[item["basis"]]
    if basis is not None:
        _check_coefficients(packed, names, basis)
    return DeclaredMedia(index, kind, grid, origin, name, tensors=packed, basis=basis)


def _check_coefficients(packed: Sequence[Packed], names: list[str], basis: Basis) -> None:
    if len(packed) != len(basis.tensors):
        raise WireError(
            "wrong number of tensors for the basis", field=names[0], expected=len(basis.tensors), got=len(packed)
        )
    for name, own, tensor in zip(names, packed, basis.tensors, strict=True):
        if own.shape[1] != tensor.rank:
            raise WireError("coefficients do not fit their basis", field=name, expected=tensor.rank, got=own.shape[1])


def _packed(arrays: dict[str, NDArray[Any]], name: str, packing: Packing) -> Packed:
    codes = take(arrays, name, (NUMPY_DTYPES[packing.dtype],), 2)
    return Packed(packing, codes, take(arrays, name + SCALES, (packing.scale_dtype,), 2))


def _check_unpacked_size(
    items: list[Any], version: int, arrays: dict[str, NDArray[Any]], limits: Limits, bases: Bases
) -> None:
    """Check the unpacked size of a body against the limit, before anything is unpacked."""
    size = 0
    for index, item in enumerate(items):
        if not isinstance(item, dict) or (name := item.get("packing")) is None:
            continue
        field = f"media.{index}.packing"
        if version < PACKED_VERSION:
            raise WireError("this wire version has no packed media", field=field, expected=f"version {PACKED_VERSION}")
        if not isinstance(name, str) or name not in PACKINGS:
            raise WireError("no such packing", field=field, expected=" or ".join(PACKINGS), got=repr(name)[:80])
        if (mixed := PACKINGS[name].finer is not None) and version < MIXED_VERSION:
            raise WireError(
                "this wire version has no packing by tensor", field=field, expected=f"version {MIXED_VERSION}", got=name
            )
        if mixed and item.get("basis") is not None:
            raise WireError("coefficients are not packed by tensor", field=field, expected="int8 or int4", got=name)
        basis = _basis(index, item, version, bases)
        packing = PACKINGS[name].wide if _is_wide(index, item, version) else PACKINGS[name]
        levels: Any = item.get("levels")
        count = levels if type(levels) is int and 0 <= levels <= MAX_LEVELS else 0  # the others are refused later
        for number, tensor in enumerate(tensor_names(index, count)):
            if (codes := arrays.get(tensor)) is not None and codes.ndim == 2:
                columns = codes.shape[1] * packing.of_tensor(number).per_byte if basis is None else basis.columns
                size += len(codes) * columns * np.dtype(packing.unpacked).itemsize
    if size > limits.max_body_bytes:
        raise LimitError(
            "the embeddings are too large once unpacked",
            field="body",
            expected=f"at most {limits.max_body_bytes} bytes",
            got=f"{size} bytes",
        )


def _is_wide(index: int, item: dict[str, Any], version: int) -> bool:
    """Whether a packed item's values are beyond float16's range."""
    values, field = item.get("values"), f"media.{index}.values"
    if values is None:
        return False
    if version < WIDE_VERSION:
        raise WireError("this wire version has no wide values", field=field, expected=f"version {WIDE_VERSION}")
    if values != WIDE_VALUES or item.get("packing") == "bf16" or item.get("basis") is not None:
        raise WireError(
            "these packed values have no other type",
            field=field,
            expected=f"{WIDE_VALUES}, of fp8, int8, int4 or int8-int4 without a basis",
            got=repr(values)[:80],
        )
    return True


def _basis(index: int, item: dict[str, Any], version: int, bases: Bases) -> Basis | None:
    """The basis that an item names, None if it names none."""
    name, field = item.get("basis"), f"media.{index}.basis"
    if name is None:
        return None
    if version < BASIS_VERSION:
        raise WireError("this wire version has no bases", field=field, expected=f"version {BASIS_VERSION}")
    if not is_hash(name):
        raise WireError("invalid basis name", field=field, expected=HASH_FORM, got=repr(name)[:80])
    if name not in bases:
        raise ModelMismatchError(
            "the embeddings use a basis that the server does not have",
            field=field,
            expected=" or ".join(bases) or "none",
            got=name,
            remedy="Start the server with --wire-basis and wire/basis-*.safetensors of the device's bundle.",
        )
    return bases[name]
