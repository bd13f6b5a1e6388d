"""A request against the server's model: each mismatch is refused with the field at fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError, LimitError, ModelMismatchError, WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, MediaEmbeddings, ModelShape, Sampling
from qwen3vl_edge.contract.wire.validate import validate_request

IMAGE, VIDEO = 90, 91
MODEL = ModelShape("hash", 8, 3, 2, 100, IMAGE, VIDEO)


def media(kind: str, grid: Grid, width: int = 8, levels: int = 3, dtype: str = "<f2") -> MediaEmbeddings:
    array = np.ones((grid.tokens(2), width), dtype)
    return MediaEmbeddings(kind, grid, array, tuple(array.copy() for _ in range(levels)))


def prompt(*spans: int | tuple[int, int]) -> np.ndarray[Any, Any]:
    """Token ids: an int is that many text tokens, (id, n) is n placeholders."""
    ids: list[int] = []
    for span in spans:
        ids += [5] * span if isinstance(span, int) else [span[0]] * span[1]
    return np.array(ids, dtype=np.int64)


GOOD = GenerateRequest(
    "hash",
    prompt(3, (IMAGE, 6), 2, (VIDEO, 4), 2, (VIDEO, 4), 4),
    (media("image", Grid(1, 4, 6)), media("video", Grid(2, 4, 4))),
)


def with_value(value: float) -> MediaEmbeddings:
    item = media("image", Grid(1, 4, 6))
    level = item.deepstack[1].copy()
    level[3, 2] = value
    return replace(item, deepstack=(item.deepstack[0], level, item.deepstack[2]))


def swap_first(item: MediaEmbeddings) -> tuple[MediaEmbeddings, ...]:
    return (item, GOOD.media[1])


ones = np.ones(GOOD.input_ids.size, np.int64)
hiding = ones.copy()
hiding[4] = 0
CASES: list[tuple[str, GenerateRequest, type[ContractError], str]] = [
    ("another model", replace(GOOD, model_hash="other"), ModelMismatchError, "model_hash"),
    ("empty prompt", replace(GOOD, input_ids=np.zeros(0, np.int64)), WireError, "input_ids"),
    (
        "id too high",
        replace(GOOD, input_ids=np.where(GOOD.input_ids == 5, 100, GOOD.input_ids)),
        WireError,
        "input_ids",
    ),
    ("id negative", replace(GOOD, input_ids=np.where(GOOD.input_ids == 5, -1, GOOD.input_ids)), WireError, "input_ids"),
    ("mask too short", replace(GOOD, attention_mask=ones[:-1]), WireError, "attention_mask"),
    ("mask of twos", replace(GOOD, attention_mask=ones * 2), WireError, "attention_mask"),
    ("mask of zeros", replace(GOOD, attention_mask=ones * 0), WireError, "attention_mask"),
    ("mask hides a picture", replace(GOOD, attention_mask=hiding), WireError, "attention_mask"),
    ("narrow embeds", replace(GOOD, media=swap_first(media("image", Grid(1, 4, 6), 7))), WireError, "embeds.0"),
    ("two levels", replace(GOOD, media=swap_first(media("image", Grid(1, 4, 6), levels=2))), WireError, "deepstack.0"),
    ("float64", replace(GOOD, media=swap_first(media("image", Grid(1, 4, 6), dtype="<f8"))), WireError, "embeds.0"),
    ("odd grid", replace(GOOD, media=swap_first(media("image", Grid(1, 3, 8)))), WireError, "grid_thw.0"),
    ("zero grid", replace(GOOD, media=swap_first(media("image", Grid(1, 0, 8)))), WireError, "grid_thw.0"),
    ("image of frames", replace(GOOD, media=swap_first(media("image", Grid(2, 4, 4)))), WireError, "grid_thw.0"),
    ("one token too few", replace(GOOD, media=swap_first(media("image", Grid(1, 4, 8)))), WireError, "input_ids"),
    ("NaN", replace(GOOD, media=swap_first(with_value(np.nan))), WireError, "deepstack.0.1"),
    ("infinity", replace(GOOD, media=swap_first(with_value(np.inf))), WireError, "deepstack.0.1"),
    ("frames not apart", replace(GOOD, input_ids=prompt(3, (IMAGE, 6), 2, (VIDEO, 8), 6)), WireError, "input_ids"),
    ("placeholders, no media", replace(GOOD, media=()), WireError, "input_ids"),
    ("media, no placeholders", replace(GOOD, input_ids=prompt(9)), WireError, "input_ids"),
]


def test_good_request_passes() -> None:
    validate_request(GOOD, MODEL, Limits())
    validate_request(replace(GOOD, attention_mask=ones), MODEL, Limits())
    validate_request(GenerateRequest(None, prompt(4)), MODEL, Limits())


@pytest.mark.parametrize(("request_", "kind", "field"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_mismatch_is_named(request_: GenerateRequest, kind: type[ContractError], field: str) -> None:
    with pytest.raises(kind) as caught:
        validate_request(request_, MODEL, Limits())
    assert caught.value.field == field
    assert 400 <= caught.value.status < 500


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (Limits(max_prompt_tokens=10), "input_ids"),
        (Limits(max_media=1), "media"),
        (Limits(max_visual_tokens=13), "grid_thw"),
        (Limits(max_new_tokens=4), "sampling.max_new_tokens"),
    ],
)
def test_limits(limits: Limits, field: str) -> None:
    with pytest.raises(LimitError) as caught:
        validate_request(replace(GOOD, sampling=Sampling(max_new_tokens=5)), MODEL, limits)
    assert caught.value.field == field
