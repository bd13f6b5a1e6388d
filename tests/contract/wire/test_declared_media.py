"""What a body declares is held against grids, model and limits before anything is unpacked or looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError, LimitError, ModelMismatchError
from qwen3vl_edge.contract.wire.codec import decode_medium, decode_request, encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.packing import PACKINGS
from qwen3vl_edge.contract.wire.request import (
    GenerateRequest,
    Limits,
    MediaEmbeddings,
    MediaReference,
    ModelShape,
    pack_media,
)

IMAGE, VIDEO = 90, 91
MODEL = ModelShape("a" * 64, 32, 3, 2, 100, IMAGE, VIDEO)


class Spent(Exception):
    """Something was unpacked or looked up."""


def refuse(references: Sequence[MediaReference]) -> NoReturn:
    raise Spent


def medium(grid: Grid = Grid(1, 4, 6), width: int = 32, levels: int = 3) -> MediaEmbeddings:
    rows = np.ones((grid.tokens(2), width), np.float16)
    item = MediaEmbeddings("image", grid, rows, (rows,) * levels)
    return replace(item, hash=embedding_hash(item, MODEL.model_hash))


def request_of(*media: MediaEmbeddings) -> GenerateRequest:
    ids: list[int] = []
    for item in media:
        ids += [5, *[IMAGE] * item.grid.tokens(2)]
    return GenerateRequest(MODEL.model_hash, np.array([*ids, 5], np.int64), media)


GOOD = request_of(medium(), medium(Grid(1, 4, 4)))
WRONG: list[tuple[str, GenerateRequest, Limits, str]] = [
    ("another model", replace(GOOD, model_hash="b" * 64), Limits(), "model_hash"),
    ("a grid of half patches", request_of(medium(Grid(1, 4, 6)), medium(Grid(1, 8, 3))), Limits(), "grid_thw.1"),
    ("no placeholders", replace(GOOD, input_ids=np.array([5, 5], np.int64)), Limits(), "input_ids"),
    ("an unknown id", replace(GOOD, input_ids=GOOD.input_ids + 50), Limits(), "input_ids"),
    ("too many visual tokens", GOOD, Limits(max_visual_tokens=9), "grid_thw"),
    ("too many new tokens", GOOD, Limits(max_new_tokens=4), "sampling.max_new_tokens"),
]


@pytest.mark.parametrize(("request_", "limits", "field"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_nothing_is_looked_up_for_a_wrong_request(request_: GenerateRequest, limits: Limits, field: str) -> None:
    body = bytes(encode_request(request_, [str(item.hash) for item in request_.media]))
    with pytest.raises(ContractError) as refused:
        decode_request(body, limits, refuse, model=MODEL)
    assert refused.value.field == field
    with pytest.raises(Spent):
        decode_request(
            bytes(encode_request(GOOD, [str(item.hash) for item in GOOD.media])), Limits(), refuse, model=MODEL
        )


@pytest.mark.parametrize(
    ("item", "field"),
    [(medium(width=64), "embeds.0"), (medium(levels=2), "deepstack.0"), (medium(levels=4), "deepstack.0")],
)
def test_packed_tensors_are_held_against_the_model_first(
    item: MediaEmbeddings, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack_media(item, PACKINGS["int4"])
    bodies = bytes(encode_request(request_of(packed))), bytes(encode_medium(packed, MODEL.model_hash))
    good = bytes(encode_request(request_of(pack_media(medium(), PACKINGS["int4"]))))

    def unpacked(*_: Any) -> NoReturn:
        raise Spent

    monkeypatch.setattr("qwen3vl_edge.contract.wire.media_codec.unpack", unpacked)
    for decode, body in zip((decode_request, decode_medium), bodies, strict=True):
        with pytest.raises(ContractError) as refused:
            decode(body, Limits(), model=MODEL)
        assert refused.value.field == field
    with pytest.raises(Spent):
        decode_request(good, model=MODEL)


def test_visual_tokens_are_claimed_before_they_are_looked_up() -> None:
    claimed: list[int] = []
    body = bytes(encode_request(GOOD, [str(GOOD.media[0].hash)]))
    with pytest.raises(Spent):
        decode_request(body, Limits(), refuse, model=MODEL, claim=claimed.append)
    assert claimed == [6 + 4]

    def full(_: int) -> NoReturn:
        raise LimitError("no room")

    with pytest.raises(LimitError, match="no room"):
        decode_request(body, Limits(), refuse, model=MODEL, claim=full)


def test_a_medium_of_another_model_is_named_as_such_whatever_its_width() -> None:
    with pytest.raises(ModelMismatchError):
        decode_medium(bytes(encode_medium(medium(width=64), "b" * 64)), model=MODEL)
