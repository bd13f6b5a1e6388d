"""Validate a decoded request against the server's model and limits, before any model tensor is created."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.model_hash import model_mismatch
from qwen3vl_edge.contract.errors import LimitError, WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, MediaEmbeddings, ModelShape, tensor_names

_CHUNK = 1 << 18  # elements checked for NaN and infinity at a time: bounds the scratch memory


class Declared(Protocol):
    """A picture or clip of which the embeddings may still be packed, or in a store.

    Attributes:
        shapes: of the embeddings and of each DeepStack level; None if a store has them.
    """

    @property
    def kind(self) -> str: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...] | None: ...


def validate_request(request: GenerateRequest, model: ModelShape, limits: Limits) -> None:
    """Check everything that could make the answer wrong or the server fail.

    Raises:
        ModelMismatchError: the embeddings are from another model.
        LimitError: more tokens or media than allowed.
        WireError: shapes, dtypes, counts, ids or values that do not fit; names the field.
    """
    validate_declared(request, request.media, model, limits)
    for index, item in enumerate(request.media):
        _check_dtypes(index, item)
        _check_values(index, item, model.largest)


def validate_declared(request: GenerateRequest, media: Sequence[Declared], model: ModelShape, limits: Limits) -> None:
    """The checks of `validate_request` that need no tensor but the prompt.

    Args:
        request: its own media are not looked at.
        media: what they will be.

    Raises:
        ModelMismatchError, LimitError, WireError: as `validate_request`.
    """
    _check_model(request.model_hash, model)
    _at_most("media", "media", len(media), limits.max_media)
    _check_prompt(request, model, limits)
    for index, item in enumerate(media):
        _check_media(index, item, model)
    _check_placeholders(request.input_ids, media, model)
    check_visual_tokens(visual_tokens(media, model), limits)


def visual_tokens(media: Sequence[Declared], model: ModelShape) -> int:
    """Visual tokens of media with valid grids."""
    return sum(item.grid.tokens(model.merge_size) for item in media)


def check_visual_tokens(count: int, limits: Limits) -> None:
    """Raises: LimitError: more visual tokens than a request may have."""
    _at_most("visual tokens", "grid_thw", count, limits.max_visual_tokens)


def validate_medium(item: MediaEmbeddings, model: ModelShape, limits: Limits) -> None:
    """The checks of `validate_request` for one picture or clip without a prompt.

    Raises:
        LimitError, WireError: as `validate_request`, with media index 0.
    """
    validate_declared_medium(item, model, limits)
    _check_dtypes(0, item)
    _check_values(0, item, model.largest)


def validate_declared_medium(item: Declared, model: ModelShape, limits: Limits, model_hash: str | None = None) -> None:
    """The checks of `validate_medium` that need no tensor.

    Raises:
        ModelMismatchError: `model_hash` is another model's.
        LimitError, WireError: as `validate_medium`.
    """
    _check_model(model_hash, model)
    _check_media(0, item, model)
    check_visual_tokens(visual_tokens([item], model), limits)


def _check_model(model_hash: str | None, model: ModelShape) -> None:
    if model_hash is not None and model_hash != model.model_hash:
        raise model_mismatch(
            "the embeddings were made for another model",
            "model_hash",
            model.model_hash,
            model_hash,
            "Export the bundle from the checkpoint that the server runs.",
        )


def _check_values(index: int, item: MediaEmbeddings, limit: float) -> None:
    for name, array in zip(tensor_names(index, len(item.deepstack)), item.arrays, strict=True):
        _check_finite(name, array)
        if limit < float(np.finfo(array.dtype).max):
            _check_range(name, array, limit)


def _check_range(name: str, array: NDArray[Any], limit: float) -> None:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        largest = float(np.abs(flat[start : start + _CHUNK]).max())
        if largest > limit:
            raise WireError(
                f"tensor {name!r} holds values that the server's model cannot",
                field=name,
                expected=f"at most {limit:g}, the largest of the model's dtype",
                got=largest,
                remedy="Start the server with --dtype bfloat16 or float32.",
            )


def _at_most(what: str, field: str, value: int, limit: int) -> None:
    if value > limit:
        raise LimitError(f"too many {what}", field=field, expected=f"at most {limit}", got=value)


def _check_prompt(request: GenerateRequest, model: ModelShape, limits: Limits) -> None:
    ids = request.input_ids
    if ids.ndim != 1 or ids.size == 0:
        raise WireError("the prompt is empty or not a vector", field="input_ids", expected="[L]", got=list(ids.shape))
    _at_most("prompt tokens", "input_ids", ids.size, limits.max_prompt_tokens)
    _at_most("new tokens", "sampling.max_new_tokens", request.sampling.max_new_tokens, limits.max_new_tokens)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model.vocab_size:
        raise WireError(
            "a token id is outside the vocabulary",
            field="input_ids",
            expected=f"0 to {model.vocab_size - 1}",
            got=low if low < 0 else high,
        )
    for token, _ in request.sampling.logit_bias:
        if not 0 <= token < model.vocab_size:
            raise WireError(
                "a token id of logit_bias is outside the vocabulary",
                field=f"sampling.logit_bias.{token}",
                expected=f"0 to {model.vocab_size - 1}",
                got=token,
            )
    mask = request.attention_mask
    if mask is not None:
        if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all() or not mask.any():
            raise WireError(
                "the attention mask does not fit the prompt",
                field="attention_mask",
                expected=f"{ids.size} values of 0 or 1, not all 0",
                got=f"{list(mask.shape)}, {int(mask.min())} to {int(mask.max())}" if mask.size else "no values",
            )
        visual = np.isin(ids, (model.image_token_id, model.video_token_id))
        if (visual & (mask == 0)).any():
            raise WireError("the attention mask hides a visual placeholder", field="attention_mask")


def _check_media(index: int, item: Declared, model: ModelShape) -> None:
    grid, merge = item.grid, model.merge_size
    if min(grid.as_list()) < 1 or grid.h % merge or grid.w % merge or (item.kind == "image" and grid.t != 1):
        raise WireError(
            "invalid grid for the vision encoder",
            field=f"grid_thw.{index}",
            expected=f"t >= 1 (1 for an image), h and w positive multiples of {merge}",
            got=grid.as_list(),
        )
    if item.shapes is None:
        return
    if len(item.shapes) - 1 != model.deepstack_levels:
        raise WireError(
            "DeepStack levels do not match the model",
            field=f"deepstack.{index}",
            expected=model.deepstack_levels,
            got=len(item.shapes) - 1,
        )
    expected = (grid.tokens(merge), model.hidden_size)
    for name, shape in zip(tensor_names(index, model.deepstack_levels), item.shapes, strict=True):
        if shape != expected:
            raise WireError(
                f"tensor {name!r} does not match grid_thw {grid.as_list()} and the model's width",
                field=name,
                expected=list(expected),
                got=list(shape),
            )


def _check_dtypes(index: int, item: MediaEmbeddings) -> None:
    for name, array in zip(tensor_names(index, len(item.deepstack)), item.arrays, strict=True):
        if array.dtype not in (np.dtype("<f2"), np.dtype("<f4")):
            raise WireError(f"tensor {name!r} has the wrong dtype", field=name, expected="F16 or F32", got=array.dtype)


def _check_placeholders(input_ids: NDArray[np.int64], media: Sequence[Declared], model: ModelShape) -> None:
    """Each run of placeholders must be one image, or one frame of a clip, in the order of the media."""
    merge = model.merge_size
    for kind, token in (("image", model.image_token_id), ("video", model.video_token_id)):
        runs = _run_lengths(input_ids == token)
        spans: list[int] = []
        for item in media:
            if item.kind != kind:
                continue
            frames = item.grid.t if kind == "video" else 1
            spans += [item.grid.tokens(merge) // frames] * frames
        if sum(runs) != sum(spans):
            raise WireError(
                f"{kind} placeholders do not match the embeddings",
                field="input_ids",
                expected=f"{sum(spans)} tokens of id {token} from grid_thw",
                got=sum(runs),
            )
        if runs != spans:
            raise WireError(
                f"{kind} placeholders are not grouped as grid_thw requires",
                field="input_ids",
                expected=f"spans of {_brief(spans)}",
                got=_brief(runs),
            )


def _run_lengths(flags: NDArray[np.bool_]) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [int(length) for length in edges[1::2] - edges[::2]]


def _brief(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"{str(numbers[:8])[:-1]}, … {len(numbers)} in all]"


def _check_finite(name: str, array: NDArray[Any]) -> None:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        finite = np.isfinite(chunk)
        if not finite.all():
            at = start + int(np.argmin(finite))
            raise WireError(
                f"tensor {name!r} holds NaN or infinity",
                field=name,
                expected="finite values",
                got=f"{flat[at]} at row {at // array.shape[1]}, column {at % array.shape[1]}",
            )
