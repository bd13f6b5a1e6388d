"""The JSON form of a generation request, for curl and debugging; the binary form is about ten times smaller."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError, LimitError, WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, MediaEmbeddings, ModelShape, Sampling
from qwen3vl_edge.contract.wire.validate import check_visual_tokens
from qwen3vl_edge.server.errors import BodySchemaError

MAX_QUOTES = 2_000  # the known names have 48, the ids of logit_bias 600; of each unknown one there would be an error
GridRow = Annotated[list[int], Field(min_length=3, max_length=3)]
# The first wrong value is enough: of a million there would be a million errors.
Integers = Annotated[list[int], Field(fail_fast=True)]


class GenerateBody(BaseModel):
    """Fields of a JSON body.

    Media are grouped by kind: all images in the order of their placeholders, then all clips in theirs,
    whatever their order in the prompt. So the first rows of `vision_embeddings` belong to
    `image_grid_thw[0]`, the next to `image_grid_thw[1]`, …, and after the last image to `video_grid_thw[0]`.

    Attributes:
        input_ids: [L], placeholders expanded.
        vision_embeddings: per medium [n][D], n = t·h·w / merge², or all rows in one [sum of n][D].
        deepstack_embeddings: [level], each as `vision_embeddings`.
        image_grid_thw, video_grid_thw: [count][3].
        attention_mask: [L] of 0 and 1.
        model_hash: rejected if it is not the server's; optional here.
        max_new_tokens … logit_bias: as in `Sampling`; greedy by default.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    input_ids: Integers
    vision_embeddings: list[Any] = []
    deepstack_embeddings: list[list[Any]] = []
    image_grid_thw: Annotated[list[GridRow], Field(fail_fast=True)] = []
    video_grid_thw: Annotated[list[GridRow], Field(fail_fast=True)] = []
    attention_mask: Integers | None = None
    model_hash: str | None = None
    request_id: str = ""
    stream: bool = False
    max_new_tokens: int = Sampling.max_new_tokens
    do_sample: bool = Sampling.do_sample
    temperature: float = Sampling.temperature
    top_p: float = Sampling.top_p
    top_k: int = Sampling.top_k
    min_p: float | None = Sampling.min_p
    repetition_penalty: float = Sampling.repetition_penalty
    seed: int | None = Sampling.seed
    presence_penalty: float = Sampling.presence_penalty
    frequency_penalty: float = Sampling.frequency_penalty
    logit_bias: dict[str, Any] = {}


def decode_json(
    body: bytes | bytearray,
    model: ModelShape,
    limits: Limits,
    check: Callable[[GenerateRequest], GenerateRequest] = lambda request: request,
    claim: Callable[[int], None] = lambda _: None,
) -> GenerateRequest:
    """Parse a JSON body into the same request as its binary form; embeddings become float32.

    Its values are counted by the caller: `check_values` in `contract/formats/strict_json.py`.

    Args:
        check: the engine's validation, run here so that its errors name the JSON fields too.
        claim: called with the number of visual tokens before the embeddings are converted; may raise.

    Raises:
        BodySchemaError: a field is missing, unknown or of the wrong type.
        WireError, LimitError: a value does not fit; names the JSON field.
    """
    if (quotes := body.count(b'"')) > MAX_QUOTES:
        raise LimitError(
            "the body has too many strings", field="body", expected=f"at most {MAX_QUOTES // 2}", got=quotes // 2
        )
    try:
        parsed = GenerateBody.model_validate_json(body)
    except ValidationError as error:
        raise _schema_error(error) from None
    try:
        return check(_request(parsed, model, limits, claim))
    except ContractError as error:
        raise rename_fields(error, len(parsed.image_grid_thw)) from None


def rename_fields(error: ContractError, images: int) -> ContractError:
    """The same error with the JSON form's field: `embeds.2` is `vision_embeddings.2`, and so on.

    Args:
        images: number of images, which come before the clips.
    """
    old = error.field or ""
    new = old.removeprefix("sampling.")
    new = re.sub(r"^embeds\.", "vision_embeddings.", new)
    new = re.sub(r"^deepstack\.(\d+)\.(\d+)$", r"deepstack_embeddings.\2.\1", new)  # in JSON the level comes first
    new = re.sub(r"^deepstack\.\d+$", "deepstack_embeddings", new)
    if match := re.fullmatch(r"grid_thw\.(\d+)", new):
        index = int(match[1])
        new = f"image_grid_thw.{index}" if index < images else f"video_grid_thw.{index - images}"
    if new != old:
        error.field = new
        error.message = error.message.replace(repr(old), repr(new))
    return error


def _request(parsed: GenerateBody, model: ModelShape, limits: Limits, claim: Callable[[int], None]) -> GenerateRequest:
    return GenerateRequest(
        model_hash=parsed.model_hash,
        input_ids=_integers(parsed.input_ids, "input_ids"),
        media=_media(parsed, model, limits, claim),
        attention_mask=None if parsed.attention_mask is None else _integers(parsed.attention_mask, "attention_mask"),
        sampling=Sampling.from_dict({item.name: getattr(parsed, item.name) for item in fields(Sampling)}),
        stream=parsed.stream,
        request_id=parsed.request_id,
    )


def _media(
    parsed: GenerateBody, model: ModelShape, limits: Limits, claim: Callable[[int], None]
) -> tuple[MediaEmbeddings, ...]:
    kinds = ["image"] * len(parsed.image_grid_thw) + ["video"] * len(parsed.video_grid_thw)
    grids = [Grid(*row) for row in (*parsed.image_grid_thw, *parsed.video_grid_thw)]
    if len(grids) > limits.max_media:
        raise LimitError(
            "too many images and clips", field="media", expected=f"at most {limits.max_media}", got=len(grids)
        )
    for index, grid in enumerate(grids):
        if min(grid.as_list()) < 1 or grid.h % model.merge_size or grid.w % model.merge_size:
            raise WireError(
                "invalid grid for the vision encoder",
                field=f"grid_thw.{index}",
                expected=f"t >= 1, h and w positive multiples of {model.merge_size}",
                got=grid.as_list(),
            )
    counts = [grid.tokens(model.merge_size) for grid in grids]
    check_visual_tokens(sum(counts), limits)
    claim(sum(counts))
    embeds = _split(parsed.vision_embeddings, counts, "vision_embeddings")
    levels = [
        _split(level, counts, f"deepstack_embeddings.{index}")
        for index, level in enumerate(parsed.deepstack_embeddings)
    ]
    return tuple(
        MediaEmbeddings(kind, grid, embeds[index], tuple(level[index] for level in levels))
        for index, (kind, grid) in enumerate(zip(kinds, grids, strict=True))
    )


def _split(rows: Sequence[Any], counts: list[int], field: str) -> list[NDArray[np.float32]]:
    """Split rows by medium, from one list per medium or one list for all."""
    if rows and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], list):
        if len(rows) != len(counts):
            raise WireError("expected one list per image and clip", field=field, expected=len(counts), got=len(rows))
        return [_matrix(item, f"{field}.{index}") for index, item in enumerate(rows)]
    if len(rows) != sum(counts):
        raise WireError(
            "the grids do not match the number of rows",
            field=field,
            expected=sum(counts),
            got=len(rows),
        )
    if not rows:
        return []
    matrix = _matrix(rows, field)
    edges = np.cumsum([0, *counts])
    return [matrix[start:end] for start, end in pairwise(edges)]


def _matrix(rows: Any, field: str) -> NDArray[np.float32]:
    try:
        array = np.array(rows)
    except ValueError:
        array = np.empty(0)
    if array.ndim != 2 or array.dtype.kind not in "fi":
        raise WireError("embeddings must be rows of numbers", field=field, expected="[n][D]", got=f"rank {array.ndim}")
    with np.errstate(over="ignore"):  # overflow becomes infinity, which validation reports
        return array.astype(np.float32)


def _integers(values: list[int], field: str) -> NDArray[np.int64]:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise WireError("a number exceeds 64 bits", field=field) from None


def _schema_error(error: ValidationError) -> ContractError:
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return WireError("the body is not JSON", field="body", got=first["msg"])
    field = ".".join(str(part) for part in first["loc"]) or "body"
    got = None if first["type"] == "missing" else reprlib.repr(first["input"])[:80]
    return BodySchemaError(f"field {field!r}: {first['msg']}"[:200], field=field[:80], got=got)
