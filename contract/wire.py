"""The wire: a request as one safetensors body, encoded and decoded without copying its tensors.

Tensors: `input_ids` I32|I64 [L], optional `attention_mask` U8 [L], `grid_thw` I32 [media, 3], and per
picture or clip i `embeds.{i}` F16|F32 [n, D] and `deepstack.{i}.{k}` of the same dtype and shape.
Everything else is one JSON document in the header's metadata under `request`. A picture that the server holds already
may be named by its hash, without tensors; such a body says version 2, so that a server that knows none refuses it.
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
from contract.request import KINDS, GenerateRequest, Limits, Media, MediaReference, Sampling
from contract.safetensors_layout import Layout, build_header, header_length, parse_header
from contract.strict_json import strict_object

WIRE_VERSION = 1
REFERENCE_VERSION = 2  # of a body that names embeddings without sending them
CONTENT_TYPE = "application/vnd.qwen3vl-edge.v1+safetensors"
MAX_WIRE_HEADER_BYTES = 4 * 2**20

_NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "<u1"}
_DTYPE_NAMES = {np.dtype(value): key for key, value in _NUMPY_DTYPES.items()}


Lookup = Callable[[Sequence[MediaReference]], Sequence[Media]]
"""Finds the embeddings of references, in order; raises where it does not hold them."""


def encode_request(request: GenerateRequest, by_hash: Collection[str] = ()) -> list[memoryview]:
    """The body as buffers to send one after another: the header, then each tensor's own memory.

    Args:
        by_hash: media with one of these hashes are named and not sent.

    Raises:
        WireError: a tensor has a dtype that the wire does not carry.
    """
    tensors: list[tuple[str, NDArray[Any]]] = [("input_ids", request.input_ids)]
    if request.attention_mask is not None:
        tensors.append(("attention_mask", request.attention_mask.astype(np.uint8)))
    if request.media:
        tensors.append(("grid_thw", np.array([item.grid.as_list() for item in request.media], dtype=np.int32)))
    named = [item.hash is not None and item.hash in by_hash for item in request.media]
    for index, item in enumerate(request.media):
        if not named[index]:
            tensors += _tensors(index, item)
    # Widest elements first keeps every tensor aligned to its own dtype, so a view needs no copy to be used.
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    document = {
        "version": REFERENCE_VERSION if any(named) else WIRE_VERSION,
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
    tensors = sorted([("grid_thw", grids), *_tensors(0, item)], key=lambda pair: -pair[1].dtype.itemsize)
    return _container(tensors, {"version": WIRE_VERSION, "model_hash": model_hash, "media": [_item(item, False)]})


def _tensors(index: int, item: Media) -> list[tuple[str, NDArray[Any]]]:
    levels = [(f"deepstack.{index}.{level}", array) for level, array in enumerate(item.deepstack)]
    return [(f"embeds.{index}", item.embeds), *levels]


def _item(item: Media, named: bool) -> dict[str, Any]:
    if named:
        return {"kind": item.kind, "by_hash": True, "hash": item.hash, "origin": item.origin}
    found = {"kind": item.kind, "levels": len(item.deepstack), "origin": item.origin}
    return found if item.hash is None else {**found, "hash": item.hash}


def _container(tensors: list[tuple[str, NDArray[Any]]], document: dict[str, Any]) -> list[memoryview]:
    entries = [(name, _dtype_name(name, array), array.shape) for name, array in tensors]
    header = build_header(entries, {"request": json.dumps(document, separators=(",", ":"))})
    return [memoryview(header), *(_bytes_of(array) for _, array in tensors)]


def body_size(buffers: list[memoryview]) -> int:
    """Bytes of an encoded body, for Content-Length."""
    return sum(buffer.nbytes for buffer in buffers)


def decode_request(
    body: bytes | bytearray | memoryview, limits: Limits | None = None, lookup: Lookup | None = None
) -> GenerateRequest:
    """Parse a body; the request's arrays are views of it.

    Structure is checked here (container, names, dtypes, ranks, counts of the document); what depends on
    the server's model is checked by `contract.validate.validate_request`.

    Args:
        lookup: finds what the body names by hash, with the grid that it names; without it such a body is refused.

    Raises:
        WireError: names the field at fault.
        LimitError: body or media count above the limits.
    """
    limits = limits or Limits()
    document, arrays = _parse(body, limits)
    items = _media(document["media"], arrays)
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
    document, arrays = _parse(body, limits or Limits())
    if len(document["media"]) != 1:
        raise WireError("body holds not one medium", field="media", expected=1, got=len(document["media"]))
    items = _media(document["media"], arrays)
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
    if type(version) is not int or version not in (WIRE_VERSION, REFERENCE_VERSION):
        raise WireError(
            "wire version is not spoken here",
            field="version",
            expected=f"{WIRE_VERSION} or {REFERENCE_VERSION}",
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
        names = " or ".join(_DTYPE_NAMES[np.dtype(dtype)] for dtype in dtypes)
        raise WireError(
            f"tensor {name!r} has the wrong dtype or rank",
            field=name,
            expected=f"{names} of rank {rank}",
            got=f"{_DTYPE_NAMES[array.dtype]} of shape {list(array.shape)}",
        )
    return array


def _media(items: list[Any], arrays: dict[str, NDArray[Any]]) -> list[Media | MediaReference]:
    if not items:
        return []
    grids = _take(arrays, "grid_thw", ("<i4", "<i8"), 2)
    if grids.shape != (len(items), 3):
        raise WireError(
            "grid_thw does not match the media list", field="grid_thw", expected=[len(items), 3], got=list(grids.shape)
        )
    return [
        _medium(index, item, Grid(*(int(value) for value in grids[index])), arrays) for index, item in enumerate(items)
    ]


def _medium(index: int, item: Any, grid: Grid, arrays: dict[str, NDArray[Any]]) -> Media | MediaReference:
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
    if type(levels) is not int or not 0 <= levels <= 64:
        raise WireError("media item is malformed", field=f"media.{index}", expected="levels (0 to 64) and origin")
    floats = ("<f2", "<f4")
    embeds = _take(arrays, f"embeds.{index}", floats, 2)
    deepstack = tuple(_take(arrays, f"deepstack.{index}.{level}", floats, 2) for level in range(levels))
    return Media(kind, grid, embeds, deepstack, origin, name)


def _resolve(items: list[Media | MediaReference], version: int, lookup: Lookup | None) -> tuple[Media, ...]:
    references = [item for item in items if isinstance(item, MediaReference)]
    if references and version < REFERENCE_VERSION:
        field = f"media.{references[0].index}.by_hash"
        raise WireError("this wire version has no media by hash", field=field, expected=f"version {REFERENCE_VERSION}")
    if references and lookup is None:
        raise WireError("media by hash are not taken here", field=f"media.{references[0].index}.by_hash")
    found = iter(lookup(references)) if references and lookup is not None else iter(())
    return tuple(next(found) if isinstance(item, MediaReference) else item for item in items)
