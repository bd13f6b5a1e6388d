"""The wire: a request as one safetensors body, encoded and decoded without copying its tensors.

Tensors: `input_ids` I32|I64 [L], optional `attention_mask` U8 [L], `grid_thw` I32 [media, 3], and per
picture or clip i `embeds.{i}` F16|F32 [n, D] and `deepstack.{i}.{k}` of the same dtype and shape.
Everything else is one JSON document in the header's metadata under `request`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import LimitError, WireError
from contract.grid import Grid
from contract.request import KINDS, GenerateRequest, Limits, Media, Sampling
from contract.safetensors_layout import Layout, build_header, header_length, parse_header

WIRE_VERSION = 1
CONTENT_TYPE = "application/vnd.qwen3vl-edge.v1+safetensors"
MAX_WIRE_HEADER_BYTES = 4 * 2**20

_NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "<u1"}
_DTYPE_NAMES = {np.dtype(value): key for key, value in _NUMPY_DTYPES.items()}


def encode_request(request: GenerateRequest) -> list[memoryview]:
    """The body as buffers to send one after another: the header, then each tensor's own memory.

    Raises:
        WireError: a tensor has a dtype that the wire does not carry.
    """
    tensors: list[tuple[str, NDArray[Any]]] = [("input_ids", request.input_ids)]
    if request.attention_mask is not None:
        tensors.append(("attention_mask", request.attention_mask.astype(np.uint8)))
    if request.media:
        tensors.append(("grid_thw", np.array([item.grid.as_list() for item in request.media], dtype=np.int32)))
    for index, item in enumerate(request.media):
        tensors.append((f"embeds.{index}", item.embeds))
        tensors += [(f"deepstack.{index}.{level}", array) for level, array in enumerate(item.deepstack)]
    # Widest elements first keeps every tensor aligned to its own dtype, so a view needs no copy to be used.
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    document = {
        "version": WIRE_VERSION,
        "model_hash": request.model_hash,
        "request_id": request.request_id,
        "stream": request.stream,
        "sampling": request.sampling.to_dict(),
        "media": [{"kind": item.kind, "levels": len(item.deepstack), "origin": item.origin} for item in request.media],
    }
    entries = [(name, _dtype_name(name, array), array.shape) for name, array in tensors]
    header = build_header(entries, {"request": json.dumps(document, separators=(",", ":"))})
    return [memoryview(header), *(_bytes_of(array) for _, array in tensors)]


def body_size(buffers: list[memoryview]) -> int:
    """Bytes of an encoded body, for Content-Length."""
    return sum(buffer.nbytes for buffer in buffers)


def decode_request(body: bytes | bytearray | memoryview, limits: Limits | None = None) -> GenerateRequest:
    """Parse a body; the request's arrays are views of it.

    Structure is checked here (container, names, dtypes, ranks, counts of the document); what depends on
    the server's model is checked by `contract.validate.validate_request`.

    Raises:
        WireError: names the field at fault.
        LimitError: body or media count above the limits.
    """
    limits = limits or Limits()
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
    arrays = {name: _view(view, layout, name) for name in layout.tensors}
    media = _media(document["media"], arrays)
    input_ids = _take(arrays, "input_ids", ("<i8", "<i4"), 1)
    mask = _take(arrays, "attention_mask", ("<u1",), 1) if "attention_mask" in arrays else None
    if arrays:
        raise WireError("body holds a tensor that the request does not name", field=sorted(arrays)[0])
    return GenerateRequest(
        model_hash=document.get("model_hash"),
        input_ids=input_ids.astype(np.int64, copy=False),
        media=media,
        attention_mask=None if mask is None else mask.astype(np.int64),
        sampling=Sampling.from_dict(document.get("sampling", {})),
        stream=bool(document.get("stream", False)),
        request_id=document.get("request_id", ""),
    )


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
    try:
        document = json.loads(layout.metadata["request"])
    except KeyError:
        raise WireError("metadata has no request document", field="request") from None
    except (ValueError, RecursionError):
        raise WireError("the request document is not JSON", field="request") from None
    if not isinstance(document, dict):
        raise WireError("the request document is not an object", field="request")
    if document.get("version") != WIRE_VERSION:
        raise WireError(
            "wire version is not spoken here",
            field="version",
            expected=WIRE_VERSION,
            got=repr(document.get("version"))[:40],
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


def _media(items: list[Any], arrays: dict[str, NDArray[Any]]) -> tuple[Media, ...]:
    if not items:
        return ()
    grids = _take(arrays, "grid_thw", ("<i4", "<i8"), 2)
    if grids.shape != (len(items), 3):
        raise WireError(
            "grid_thw does not match the media list", field="grid_thw", expected=[len(items), 3], got=list(grids.shape)
        )
    media = []
    for index, item in enumerate(items):
        if not isinstance(item, dict) or item.get("kind") not in KINDS:
            raise WireError("media item has no kind", field=f"media.{index}.kind", expected=" or ".join(KINDS))
        levels, origin = item.get("levels"), item.get("origin", {})
        if type(levels) is not int or not 0 <= levels <= 64 or not isinstance(origin, dict):
            raise WireError("media item is malformed", field=f"media.{index}", expected="levels (0 to 64) and origin")
        floats = ("<f2", "<f4")
        embeds = _take(arrays, f"embeds.{index}", floats, 2)
        deepstack = tuple(_take(arrays, f"deepstack.{index}.{level}", floats, 2) for level in range(levels))
        media.append(Media(item["kind"], Grid(*(int(value) for value in grids[index])), embeds, deepstack, origin))
    return tuple(media)
