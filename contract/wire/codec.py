"""The wire format: a request as one safetensors body, encoded and decoded without copying its tensors.

Tensors: `input_ids` I32|I64 [L], optional `attention_mask` U8 [L], `grid_thw` I32 [media, 3], and per
picture or clip i `embeds.{i}` F16|F32 [n, D] and `deepstack.{i}.{k}` of the same dtype and shape.
Everything else is one JSON document in the header's metadata under `request`. A picture that the server already holds
may be named by its hash, without tensors; such a body has version 2, so that a server without this feature rejects it.
A packed tensor is its codes (BF16, F8_E4M3, I8, or U8 with two 4-bit codes in each) under the tensor's name, and
F16 scales under that name plus `.scales`: version 3 (packing.py). The packed values may be coefficients in a basis
that both ends hold and the item names: version 4 (basis.py). Packed values beyond float16's range unpack to float32,
and the item says so: version 5. Media whose first tensors are packed finer than the others: version 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import LimitError, WireError
from qwen3vl_edge.contract.formats.safetensors_layout import Layout, build_header, header_length, parse_header
from qwen3vl_edge.contract.formats.strict_json import strict_object
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.contract.wire.media_codec import (
    BASIS_VERSION,
    DTYPE_NAMES,
    MIXED_VERSION,
    NUMPY_DTYPES,
    PACKED_VERSION,
    WIDE_VERSION,
    Named,
    declare_media,
    medium_item,
    medium_tensors,
    take,
)
from qwen3vl_edge.contract.wire.request import (
    GenerateRequest,
    Limits,
    MediaEmbeddings,
    MediaReference,
    ModelShape,
    Sampling,
)
from qwen3vl_edge.contract.wire.validate import validate_declared, validate_declared_medium, visual_tokens
from qwen3vl_edge.contract.wire.wire_body import WireBody

WIRE_VERSION = 1
REFERENCE_VERSION = 2  # for bodies that name embeddings without sending them
VERSIONS = (WIRE_VERSION, REFERENCE_VERSION, PACKED_VERSION, BASIS_VERSION, WIDE_VERSION, MIXED_VERSION)
CONTENT_TYPE = "application/vnd.qwen3vl-edge.v1+safetensors"
MAX_WIRE_HEADER_BYTES = 4 * 2**20
_VALUES_PER_MEDIUM = 600  # JSON values in the header: some 250 for the most, packed with three DeepStack levels
_VALUES_BESIDE = 2_000

Lookup = Callable[[Sequence[MediaReference]], Sequence[MediaEmbeddings]]
"""Returns the embeddings of references, in order; raises if some are not in the store."""


def encode_request(request: GenerateRequest, by_hash: Collection[str] = ()) -> WireBody:
    """Encode a request: the header, then each tensor's own memory.

    Args:
        by_hash: media with one of these hashes are named instead of sent.

    Raises:
        WireError: a tensor has a dtype that the wire format does not support.
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
            tensors += medium_tensors(index, item)
    # Widest elements first keeps every tensor aligned to its own dtype, so a view can be used without a copy.
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    sent = [item for item, name in zip(request.media, named, strict=True) if not name]
    document = {
        "version": _version(sent, any(named)),
        "model_hash": request.model_hash,
        "request_id": request.request_id,
        "stream": request.stream,
        "sampling": request.sampling.to_dict(),
        "media": [medium_item(item, name) for item, name in zip(request.media, named, strict=True)],
    }
    return _container(tensors, document)


def encode_medium(item: MediaEmbeddings, model_hash: str) -> WireBody:
    """The body of `PUT /v1/embeddings/{sha256}`: the same container with one picture or clip and no prompt."""
    grids = np.array([item.grid.as_list()], dtype=np.int32)
    tensors: list[Named] = [("grid_thw", grids, None), *medium_tensors(0, item)]
    tensors.sort(key=lambda pair: -pair[1].dtype.itemsize)
    version = _version([item], False)
    return _container(tensors, {"version": version, "model_hash": model_hash, "media": [medium_item(item, False)]})


def _version(sent: Sequence[MediaEmbeddings], named: bool) -> int:
    """The lowest version that covers the body's features, so that older servers accept what they can."""
    if any(item.packed_by_tensor for item in sent):
        return MIXED_VERSION
    if any(item.wide_packed for item in sent):
        return WIDE_VERSION
    if any(item.basis is not None for item in sent):
        return BASIS_VERSION
    if any(item.packed for item in sent):
        return PACKED_VERSION
    return REFERENCE_VERSION if named else WIRE_VERSION


def _container(tensors: list[Named], document: dict[str, Any]) -> WireBody:
    entries = [(name, dtype or _dtype_name(name, array), array.shape) for name, array, dtype in tensors]
    header = build_header(entries, {"request": json.dumps(document, separators=(",", ":"))})
    return WireBody((memoryview(header), *(_bytes_of(array) for _, array, _ in tensors)), CONTENT_TYPE)


def decode_request(
    body: bytes | bytearray | memoryview,
    limits: Limits | None = None,
    lookup: Lookup | None = None,
    bases: Bases = NO_BASES,
    *,
    keep_packed: bool = False,
    model: ModelShape | None = None,
    claim: Callable[[int], None] = lambda _: None,
) -> GenerateRequest:
    """Parse a body; the request's arrays are views of it, except those that were packed.

    The structure is checked here (container, names, dtypes, ranks, counts of the document). With a model, so is
    everything that the body declares, before anything is unpacked or looked up; only the values are left to
    `validate_request` in `contract/wire/validate.py`.

    Args:
        lookup: returns media that the body names by hash, checked against their grids; None rejects such a body.
        bases: the bases that embeddings may be sent in.
        keep_packed: media also keep their packed form, to be sent again in it.
        model: the server's model.
        claim: called with the number of visual tokens before anything is unpacked or looked up; may raise.

    Raises:
        WireError: names the field at fault.
        ModelMismatchError: embeddings are in a basis that is not among `bases`, or of another model.
        LimitError: body, unpacked or not, or media count above the limits.
    """
    limits = limits or Limits()
    document, arrays = _parse(body, limits)
    declared = declare_media(document, arrays, limits, bases)
    input_ids = take(arrays, "input_ids", ("<i8", "<i4"), 1)
    mask = take(arrays, "attention_mask", ("<u1",), 1) if "attention_mask" in arrays else None
    _reject_unnamed_tensors(arrays)
    _check_lengths(input_ids, mask, limits)
    sampling = Sampling.from_dict(document.get("sampling", {}))
    request = GenerateRequest(
        model_hash=document.get("model_hash"),
        input_ids=input_ids.astype(np.int64, copy=False),
        attention_mask=None if mask is None else mask.astype(np.int64),
        sampling=sampling,
        stream=bool(document.get("stream", False)),
        request_id=document.get("request_id", ""),
    )
    if model is not None:
        validate_declared(request, declared, model, limits)
        claim(visual_tokens(declared, model))
    items = [item.open(keep_packed) for item in declared]
    return replace(request, media=_resolve(items, document["version"], lookup))


def decode_medium(
    body: bytes | bytearray | memoryview,
    limits: Limits | None = None,
    bases: Bases = NO_BASES,
    *,
    model: ModelShape | None = None,
    claim: Callable[[int], None] = lambda _: None,
) -> tuple[MediaEmbeddings, str | None]:
    """Parse the body of `encode_medium`: one picture or clip and its model's hash; arrays are views of the body.

    Args:
        model, claim: as for `decode_request`.

    Raises:
        WireError, LimitError, ModelMismatchError: as `decode_request`.
    """
    limits = limits or Limits()
    document, arrays = _parse(body, limits)
    if len(document["media"]) != 1:
        raise WireError(
            "the body must contain exactly one medium", field="media", expected=1, got=len(document["media"])
        )
    declared = declare_media(document, arrays, limits, bases)
    _reject_unnamed_tensors(arrays)
    if model is not None:
        validate_declared_medium(declared[0], model, limits, document.get("model_hash"))
        claim(visual_tokens(declared, model))
    return _resolve([declared[0].open()], document["version"], None)[0], document.get("model_hash")


def _parse(body: bytes | bytearray | memoryview, limits: Limits) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    view = memoryview(body).cast("B")
    if view.nbytes > limits.max_body_bytes:
        raise LimitError(
            "body is too large",
            field="body",
            expected=f"at most {limits.max_body_bytes} bytes",
            got=f"{view.nbytes} bytes",
        )
    layout = _layout(view, _most_values(limits))
    document = _document(layout, limits)
    return document, {name: _view(view, layout, name) for name in layout.tensors}


def _check_lengths(input_ids: NDArray[Any], mask: NDArray[Any] | None, limits: Limits) -> None:
    """Check the lengths before the arrays are widened to int64, where one byte of a mask becomes eight."""
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


def _reject_unnamed_tensors(arrays: dict[str, NDArray[Any]]) -> None:
    if arrays:
        raise WireError("the body contains a tensor that the request does not name", field=sorted(arrays)[0])


def _dtype_name(name: str, array: NDArray[Any]) -> str:
    try:
        return DTYPE_NAMES[array.dtype]
    except KeyError:
        raise WireError(
            f"tensor {name!r} cannot be sent", field=name, expected=", ".join(NUMPY_DTYPES), got=array.dtype
        ) from None


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _most_values(limits: Limits) -> int:
    return _VALUES_BESIDE + _VALUES_PER_MEDIUM * limits.max_media


def _layout(view: memoryview, max_values: int) -> Layout:
    length = header_length(view, limit=MAX_WIRE_HEADER_BYTES)
    if view.nbytes < 8 + length:
        raise WireError("body is truncated", field="header", expected=f"{8 + length} bytes", got=f"{view.nbytes} bytes")
    layout = parse_header(bytes(view[8 : 8 + length]), data_start=8 + length, max_values=max_values)
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
    document = strict_object(layout.metadata["request"], "request", _most_values(limits))
    version = document.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise WireError(
            "unsupported wire version",
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
    if entry.dtype not in NUMPY_DTYPES:
        raise WireError(
            f"tensor {name!r} has a dtype that the wire format does not support",
            field=name,
            expected=", ".join(NUMPY_DTYPES),
            got=entry.dtype,
        )
    start = layout.data_start + entry.begin
    return np.frombuffer(body[start : start + entry.nbytes], dtype=NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)


def _resolve(
    items: list[MediaEmbeddings | MediaReference], version: int, lookup: Lookup | None
) -> tuple[MediaEmbeddings, ...]:
    references = [item for item in items if isinstance(item, MediaReference)]
    if references and version < REFERENCE_VERSION:
        field = f"media.{references[0].index}.by_hash"
        raise WireError("this wire version has no media by hash", field=field, expected=f"version {REFERENCE_VERSION}")
    if references and lookup is None:
        raise WireError(
            "media by hash are not supported by this endpoint", field=f"media.{references[0].index}.by_hash"
        )
    stored = iter(lookup(references)) if references and lookup is not None else iter(())
    return tuple(next(stored) if isinstance(item, MediaReference) else item for item in items)
