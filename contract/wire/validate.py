"""Validate a decoded request against the server's model and limits, before any model tensor is created."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import LimitError, ModelMismatchError, WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, MediaEmbeddings, ModelShape

_CHUNK = 1 << 18  # elements checked for NaN and infinity at a time: bounds the scratch memory


def validate_request(request: GenerateRequest, model: ModelShape, limits: Limits) -> None:
    """Check everything that could make the answer wrong or the server fail.

    Raises:
        ModelMismatchError: the embeddings are from another model.
        LimitError: more tokens or media than allowed.
        WireError: shapes, dtypes, counts, ids or values that do not fit; names the field.
    """
    if request.model_hash is not None and request.model_hash != model.model_hash:
        raise ModelMismatchError(
            "the embeddings were made for another model",
            field="model_hash",
            expected=model.model_hash,
            got=request.model_hash[:80],
            remedy="Export the bundle from the checkpoint that the server runs.",
        )
    _check_prompt(request, model, limits)
    for index, item in enumerate(request.media):
        _check_media(index, item, model)
    _check_placeholders(request, model)
    visual = sum(item.embeds.shape[0] for item in request.media)
    _at_most("visual tokens", "grid_thw", visual, limits.max_visual_tokens)
    for index, item in enumerate(request.media):
        _check_values(index, item)


def validate_medium(item: MediaEmbeddings, model: ModelShape, limits: Limits) -> None:
    """The checks of `validate_request` for one picture or clip without a prompt.

    Raises:
        LimitError, WireError: as `validate_request`, with media index 0.
    """
    _check_media(0, item, model)
    _at_most("visual tokens", "grid_thw", item.embeds.shape[0], limits.max_visual_tokens)
    _check_values(0, item)


def _check_values(index: int, item: MediaEmbeddings) -> None:
    _check_finite(f"embeds.{index}", item.embeds)
    for level, array in enumerate(item.deepstack):
        _check_finite(f"deepstack.{index}.{level}", array)


def _at_most(what: str, field: str, value: int, limit: int) -> None:
    if value > limit:
        raise LimitError(f"too many {what}", field=field, expected=f"at most {limit}", got=value)


def _check_prompt(request: GenerateRequest, model: ModelShape, limits: Limits) -> None:
    ids = request.input_ids
    if ids.ndim != 1 or ids.size == 0:
        raise WireError("the prompt is empty or not a vector", field="input_ids", expected="[L]", got=list(ids.shape))
    _at_most("prompt tokens", "input_ids", ids.size, limits.max_prompt_tokens)
    _at_most("media", "media", len(request.media), limits.max_media)
    _at_most("new tokens", "sampling.max_new_tokens", request.sampling.max_new_tokens, limits.max_new_tokens)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model.vocab_size:
        raise WireError(
            "a token id is outside the vocabulary",
            field="input_ids",
            expected=f"0 to {model.vocab_size - 1}",
            got=low if low < 0 else high,
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


def _check_media(index: int, item: MediaEmbeddings, model: ModelShape) -> None:
    grid, merge = item.grid, model.merge_size
    if min(grid.as_list()) < 1 or grid.h % merge or grid.w % merge or (item.kind == "image" and grid.t != 1):
        raise WireError(
            "invalid grid for the vision encoder",
            field=f"grid_thw.{index}",
            expected=f"t >= 1 (1 for an image), h and w positive multiples of {merge}",
            got=grid.as_list(),
        )
    if len(item.deepstack) != model.deepstack_levels:
        raise WireError(
            "DeepStack levels do not match the model",
            field=f"deepstack.{index}",
            expected=model.deepstack_levels,
            got=len(item.deepstack),
        )
    expected = (grid.tokens(merge), model.hidden_size)
    arrays = {f"embeds.{index}": item.embeds}
    arrays |= {f"deepstack.{index}.{level}": array for level, array in enumerate(item.deepstack)}
    for name, array in arrays.items():
        if array.shape != expected:
            raise WireError(
                f"tensor {name!r} does not match grid_thw {grid.as_list()} and the model's width",
                field=name,
                expected=list(expected),
                got=list(array.shape),
            )
        if array.dtype not in (np.dtype("<f2"), np.dtype("<f4")):
            raise WireError(f"tensor {name!r} has the wrong dtype", field=name, expected="F16 or F32", got=array.dtype)


def _check_placeholders(request: GenerateRequest, model: ModelShape) -> None:
    """Each run of placeholders must be one image, or one frame of a clip, in the order of the media."""
    merge = model.merge_size
    for kind, token in (("image", model.image_token_id), ("video", model.video_token_id)):
        runs = _run_lengths(request.input_ids == token)
        spans: list[int] = []
        for item in request.of_kind(kind):
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
