"""The wire: a request as one safetensors body, encoded and decoded without copying its tensors.

Tensors: `input_ids` I32|I64 [L], optional `attention_mask` U8 [L], `grid_thw` I32 [media, 3], and per
picture or clip i `embeds.{i}` F16|F32 [n, D] and `deepstack.{i}.{k}` of the same dtype and shape.
Everything else is one JSON document in the header's metadata under `request`. A picture that the server holds already
may be named by its hash, without tensors; such a body says version 2, so that a server that knows none refuses it.
A packed tensor is its codes (BF16, F8_E4M3, I8, or U8 with two codes of 4 bits in each) under the tensor's name, and
F16 scales under that name and `.scales`: version 3 (`contract.packing`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.embedding_hash import is_hash
from contract.errors import LimitError, WireError
from contract.grid import Grid
from contract.packing import PACKINGS, Packed, Packing, check_packed, unpack
from contract.request import KINDS, GenerateRequest, Limits, Media, MediaReference, Sampling
from contract.safetensors_layout import Layout, build_header, header_length, parse_header
from contract.strict_json import strict_object

WIRE_VERSION = 1
REFERENCE_VERSION = 2  # of a body that names embeddings without sending them
PACKED_VERSION = 3  # of a body with packed embeddings
VERSIONS = (WIRE_VERSION, REFERENCE_VERSION, PACKED_VERSION)
SCALES = ".scales"
MAX_LEVELS = 64
CONTENT_TYPE = "application/vnd.qwen3vl-edge.v1+safetensors"
MAX_WIRE_HEADER_BYTES = 4 * 2**20

_NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "<u1", "I8": "<i1"}
_DTYPE_NAMES = {np.dtype(value): key for key, value in _NUMPY_DTYPES.items()}
_NUMPY_DTYPES |= {"F8_E4M3": "<u1", "BF16": "<u2"}  # numpy has no such types
_SAID = {**_DTYPE_NAMES, np.dtype("<u2"): "BF16"}  # in messages
Named = tuple[str, NDArray[Any], str | None]  # the dtype's name, where numpy's type does not say it


Lookup = Callable[[Sequence[MediaReference]], Sequence[Media]]
"""Finds the embeddings of references, in order; raises where it does not hold them."""


def encode_request(request: GenerateRequest, by_hash: Collection[str] = ()) -> list[memoryview]:
    """The body as buffers to send one after another: the header, then each tensor's own memory.

    Args:
        by_hash: media with one of these hashes are named and not sent.

    Raises:
        WireError: a tensor has a dtype that the wire does not carry.
    """
    tensors: list[Named] = [("input_ids", request.input_ids, None)]
    if request.attention_mask is not None:
        tensors.append(("attention_mask", request.attention_mask.astype(np.uint8), None))
    if request.media:
        grids = np.array([item.grid.as_list() for item in request.media], dtype=np.int32)
        tensors.append(("grid_thw", grids, None))
    named = [item.hash is not None and item.hash in by_hash for item in request.media]
    for index, item in enumerate(request.media):
        if not named[index]:
            tensors += _tensors(index, item)
    # Widest elements first keeps every tensor aligned to its own dtype, so a view needs no copy to be used.
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    sent = [item for item, name in zip(request.media, named, strict=True) if not name]
    document = {
        "version": _version(sent, any(named)),
        "model_hash": request.model_hash,
        "request_id": request.request_id,
        "stream": request.stream,
        "sampling": request.sampling.to_dict(),
        "media": [_item(item, name) for item, name in zip(request.media, named, strict=True)],
    }
    return _container(tensors, document)


def encode_medium(item: Media, model_hash: str) -> list[memoryview]:
    """The body of `PUT /v1/embeddings/{sha256}`: the same container with one picture or clip and no prompt."""
    grids = np.array([item.grid.as_list()], dtype=np.int32)
    tensors: list[Named] = [("grid_thw", grids, None), *_tensors(0, item)]
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    version = _version([item], False)
    return _container(tensors, {"version": version, "model_hash": model_hash, "media": [_item(item, False)]})


def _version(sent: Sequence[Media], named: bool) -> int:
    """The lowest that says all of it, so that older servers take what they can."""
    if any(item.packed for item in sent):
        return PACKED_VERSION
    return REFERENCE_VERSION if named else WIRE_VERSION


def _tensors(index: int, item: Media) -> list[Named]:
    names = _names(index, len(item.deepstack))
    if not item.packed:
        return [(name, array, None) for name, array in zip(names, item.arrays, strict=True)]
    codes: list[Named] = [
        (name, packed.codes, packed.packing.dtype) for name, packed in zip(names, item.packed, strict=True)
    ]
    return codes + [(name + SCALES, packed.scales, None) for name, packed in zip(names, item.packed, strict=True)]


def _item(item: Media, named: bool) -> dict[str, Any]:
    if named:
        return {"kind": item.kind, "by_hash": True, "hash": item.hash, "origin": item.origin}
    found = {"kind": item.kind, "levels": len(item.deepstack), "origin": item.origin}
    if item.packed:
        found["packing"] = item.packed[0].packing.name
    return found if item.hash is None else {**found, "hash": item.hash}


def _container(tensors: list[Named], document: dict[str, Any]) -> list[memoryview]:
    entries = [(name, dtype or _dtype_name(name, array), array.shape) for name, array, dtype in tensors]
    header = build_header(entries, {"request": json.dumps(document, separators=(",", ":"))})
    return [memoryview(header), *(_bytes_of(array) for _, array, _ in tensors)]


def body_size(buffers: list[memoryview]) -> int:
    """Bytes of an encoded body, for Content-Length."""
    return sum(buffer.nbytes for buffer in buffers)


def decode_request(
    body: bytes | bytearray | memoryview,
    limits: Limits | None = None,
    lookup: Lookup | None = None,
    *,
    keep_packed: bool = False,
) -> GenerateRequest:
    """Parse a body; the request's arrays are views of it, but for what was packed.

    Structure is checked here (container, names, dtypes, ranks, counts of the document); what depends on
    the server's model is checked by `contract.validate.validate_request`.

    Args:
        lookup: finds what the body names by hash, with the grid that it names; without it such a body is refused.
        keep_packed: media keep the form in which they came, to be sent again in it.

    Raises:
        WireError: names the field at fault.
        LimitError: body, unpacked or not, or media count above the limits.
    """
    limits = limits or Limits()
    document, arrays = _parse(body, limits)
    items = _media(document, arrays, limits, keep_packed)
    input_ids = _take(arrays, "input_ids", ("<i8", "<i4"), 1)
    mask = _take(arrays, "attention_mask", ("<u1",), 1) if "attention_mask" in arrays else None
    _nothing_left(arrays)
    _check_lengths(input_ids, mask, limits)
    sampling = Sampling.from_dict(document.get("sampling", {}))
    return GenerateRequest(
        model_hash=document.get("model_hash"),
        input_ids=input_ids.astype(np.int64, copy=False),
        media=_resolve(items, document["version"], lookup),
        attention_mask=None if mask is None else mask.astype(np.int64),
        sampling=sampling,
        stream=bool(document.get("stream", False)),
        request_id=document.get("request_id", ""),
    )


def decode_medium(body: bytes | bytearray | memoryview, limits: Limits | None = None) -> tuple[Media, str | None]:
    """One picture or clip and the hash of its model, from what `encode_medium` made; arrays are views of it.

    Raises:
        WireError, LimitError: as `decode_request`.
    """
    limits = limits or Limits()
    document, arrays = _parse(body, limits)
    if len(document["media"]) != 1:
        raise WireError("body holds not one medium", field="media", expected=1, got=len(document["media"]))
    items = _media(document, arrays, limits)
    _nothing_left(arrays)
    return _resolve(items, document["version"], None)[0], document.get("model_hash")


def _parse(body: bytes | bytearray | memoryview, limits: Limits) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    view = memoryview(body).cast("B")
    if view.nbytes > limits.max_body_bytes:
        raise LimitError(
            "body is too large",
            field="body",
            expected=f"at most {limits.max_body_bytes} bytes",
            got=f"{view.nbytes} bytes",
        )
    layout = _layout(view)
    document = _document(layout, limits)
    return document, {name: _view(view, layout, name) for name in layout.tensors}


def _check_lengths(input_ids: NDArray[Any], mask: NDArray[Any] | None, limits: Limits) -> None:
    """Before either is widened to int64, where one byte of a mask becomes eight."""
    if input_ids.size > limits.max_prompt_tokens:
        raise LimitError(
            "too many prompt tokens",
            field="input_ids",
            expected=f"at most {limits.max_prompt_tokens}",
            got=input_ids.size,
        )
    if mask is not None and mask.size != input_ids.size:
        raise WireError(
            "the attention mask does not fit the prompt",
            field="attention_mask",
            expected=f"{input_ids.size} values",
            got=mask.size,
        )


def _nothing_left(arrays: dict[str, NDArray[Any]]) -> None:
    if arrays:
        raise WireError("body holds a tensor that the request does not name", field=sorted(arrays)[0])


def _dtype_name(name: str, array: NDArray[Any]) -> str:
    try:
        return _DTYPE_NAMES[array.dtype]
    except KeyError:
        raise WireError(
            f"tensor {name!r} cannot be sent", field=name, expected=", ".join(_NUMPY_DTYPES), got=array.dtype
        ) from None


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _layout(view: memoryview) -> Layout:
    length = header_length(view, limit=MAX_WIRE_HEADER_BYTES)
    if view.nbytes < 8 + length:
        raise WireError("body is truncated", field="header", expected=f"{8 + length} bytes", got=f"{view.nbytes} bytes")
    layout = parse_header(bytes(view[8 : 8 + length]), data_start=8 + length)
    if view.nbytes != layout.total_bytes:
        raise WireError(
            "body length does not match its tensors",
            field="body",
            expected=f"{layout.total_bytes} bytes",
            got=f"{view.nbytes} bytes",
        )
    return layout


def _document(layout: Layout, limits: Limits) -> dict[str, Any]:
    if "request" not in layout.metadata:
        raise WireError("metadata has no request document", field="request")
    document = strict_object(layout.metadata["request"], "request")
    version = document.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise WireError(
            "wire version is not spoken here",
            field="version",
            expected=" or ".join(map(str, VERSIONS)),
            got=repr(version)[:40],
            remedy="Use the same release on device and server.",
        )
    for name, kinds in (("model_hash", (str, type(None))), ("request_id", (str,)), ("stream", (bool,))):
        if name in document and not isinstance(document[name], kinds):
            raise WireError(f"{name} has the wrong type", field=name, got=type(document[name]).__name__)
    media = document.setdefault("media", [])
    if not isinstance(media, list):
        raise WireError("media is not a list", field="media", got=type(media).__name__)
    if len(media) > limits.max_media:
        raise LimitError(
            "too many images and clips", field="media", expected=f"at most {limits.max_media}", got=len(media)
        )
    return document


def _view(body: memoryview, layout: Layout, name: str) -> NDArray[Any]:
    entry = layout.tensors[name]
    if entry.dtype not in _NUMPY_DTYPES:
        raise WireError(
            f"tensor {name!r} has a dtype that the wire does not carry",
            field=name,
            expected=", ".join(_NUMPY_DTYPES),
            got=entry.dtype,
        )
    start = layout.data_start + entry.begin
    return np.frombuffer(body[start : start + entry.nbytes], dtype=_NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)


def _take(arrays: dict[str, NDArray[Any]], name: str, dtypes: tuple[str, ...], rank: int) -> NDArray[Any]:
    if name not in arrays:
        raise WireError(f"tensor {name!r} is missing", field=name)
    array = arrays.pop(name)
    if array.dtype not in [np.dtype(dtype) for dtype in dtypes] or array.ndim != rank:
        names = " or ".join(_SAID[np.dtype(dtype)] for dtype in dtypes)
        raise WireError(
            f"tensor {name!r} has the wrong dtype or rank",
            field=name,
            expected=f"{names} of rank {rank}",
            got=f"{_SAID[array.dtype]} of shape {list(array.shape)}",
        )
    return array


def _media(
    document: dict[str, Any], arrays: dict[str, NDArray[Any]], limits: Limits, keep_packed: bool = False
) -> list[Media | MediaReference]:
    items = document["media"]
    if not items:
        return []
    _check_unpacked_size(items, document["version"], arrays, limits)
    grids = _take(arrays, "grid_thw", ("<i4", "<i8"), 2)
    if grids.shape != (len(items), 3):
        raise WireError(
            "grid_thw does not match the media list", field="grid_thw", expected=[len(items), 3], got=list(grids.shape)
        )
    return [
        _medium(index, item, Grid(*(int(value) for value in grids[index])), arrays, keep_packed)
        for index, item in enumerate(items)
    ]


def _medium(
    index: int, item: Any, grid: Grid, arrays: dict[str, NDArray[Any]], keep_packed: bool
) -> Media | MediaReference:
    if not isinstance(item, dict) or item.get("kind") not in KINDS:
        raise WireError("media item has no kind", field=f"media.{index}.kind", expected=" or ".join(KINDS))
    kind, name, by_hash, origin = item["kind"], item.get("hash"), item.get("by_hash", False), item.get("origin", {})
    if (name is not None or by_hash) and not is_hash(name):
        raise WireError("hash is not one", field=f"media.{index}.hash", expected="64 of 0-9a-f", got=repr(name)[:80])
    if type(by_hash) is not bool or not isinstance(origin, dict):
        raise WireError("media item is malformed", field=f"media.{index}", expected="by_hash a bool, origin a map")
    if by_hash:
        if "levels" in item:
            raise WireError("media item by hash has levels", field=f"media.{index}.levels")
        return MediaReference(index, kind, grid, str(name), origin)
    levels = item.get("levels")
    if type(levels) is not int or not 0 <= levels <= MAX_LEVELS:
        raise WireError(
            "media item is malformed", field=f"media.{index}", expected=f"levels (0 to {MAX_LEVELS}) and origin"
        )
    names = _names(index, levels)
    packed: tuple[Packed, ...] = ()
    if (packing := item.get("packing")) is None:
        embeds, *deepstack = (_take(arrays, tensor, ("<f2", "<f4"), 2) for tensor in names)
    else:
        packed = tuple(_packed(arrays, tensor, PACKINGS[packing]) for tensor in names)
        embeds, *deepstack = map(unpack, packed)
    return Media(kind, grid, embeds, tuple(deepstack), origin, name, packed if keep_packed else ())


def _names(index: int, levels: Any) -> list[str]:
    """Of a medium's tensors; of its first alone where `levels` is no count."""
    count = levels if type(levels) is int and 0 <= levels <= MAX_LEVELS else 0
    return [f"embeds.{index}", *(f"deepstack.{index}.{level}" for level in range(count))]


def _packed(arrays: dict[str, NDArray[Any]], name: str, packing: Packing) -> Packed:
    codes = _take(arrays, name, (_NUMPY_DTYPES[packing.dtype],), 2)
    scales = _take(arrays, name + SCALES, ("<f2",), 2)
    found = Packed(packing, codes, scales)
    check_packed(found, name + SCALES)
    return found


def _check_unpacked_size(items: list[Any], version: int, arrays: dict[str, NDArray[Any]], limits: Limits) -> None:
    """A packed body is held to the size that it has unpacked, before anything is unpacked."""
    size = 0
    for index, item in enumerate(items):
        if not isinstance(item, dict) or (name := item.get("packing")) is None:
            continue
        field = f"media.{index}.packing"
        if version < PACKED_VERSION:
            raise WireError("this wire version has no packed media", field=field, expected=f"version {PACKED_VERSION}")
        if not isinstance(name, str) or name not in PACKINGS:
            raise WireError("no such packing", field=field, expected=" or ".join(PACKINGS), got=repr(name)[:80])
        codes = [arrays[tensor] for tensor in _names(index, item.get("levels")) if tensor in arrays]
        packing = PACKINGS[name]
        size += sum(array.size for array in codes) * packing.per_byte * np.dtype(packing.unpacked).itemsize
    if size > limits.max_body_bytes:
        raise LimitError(
            "the embeddings are too large once unpacked",
            field="body",
            expected=f"at most {limits.max_body_bytes} bytes",
            got=f"{size} bytes",
        )


def _resolve(items: list[Media | MediaReference], version: int, lookup: Lookup | None) -> tuple[Media, ...]:
    references = [item for item in items if isinstance(item, MediaReference)]
    if references and version < REFERENCE_VERSION:
        field = f"media.{references[0].index}.by_hash"
        raise WireError("this wire version has no media by hash", field=field, expected=f"version {REFERENCE_VERSION}")
    if references and lookup is None:
        raise WireError("media by hash are not taken here", field=f"media.{references[0].index}.by_hash")
    found = iter(lookup(references)) if references and lookup is not None else iter(())
    return tuple(next(found) if isinstance(item, MediaReference) else item for item in items)
