"""Packed embeddings: what they become again, to the bit on both ends, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwen3vl_edge.contract.errors import ContractError, LimitError, WireError
from qwen3vl_edge.contract.wire.codec import (
    MIXED_VERSION,
    PACKED_VERSION,
    decode_medium,
    decode_request,
    encode_medium,
    encode_request,
)
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.packing import PACKINGS, Packed, check_packed, e4m3_values, pack, unpack
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, pack_media
from tests.support.server_checkpoint import make_case
from tests.support.wire_bodies import body_of, make_request, with_document, with_header

# Largest error, in shares of the largest value that shares a scale: half a step, and the rounding of the scale; of int4
# what the smallest scale clips, four fifths of the largest value over the largest code.
ERRORS = {"bf16": 2**-8, "fp8": 2**-4, "int8": 0.5 / 127 + 2**-10, "int4": 0.2 + 2**-10}
ERRORS["int8-int4"] = ERRORS["int4"]  # of a tensor that is packed by itself
BYTES = {"bf16": 1.0005, "fp8": 0.5005, "int8": 0.5005, "int4": 0.2815, "int8-int4": 0.2815}


def request_of(packing: str, name: str = "image and clip") -> GenerateRequest:
    request = make_case(name).request
    media = []
    for item in request.media:
        halves = replace(item, embeds=item.embeds.astype(np.float16), deepstack=tuple(map(np.float16, item.deepstack)))
        packed = pack_media(halves, PACKINGS[packing])
        media.append(replace(packed, hash=embedding_hash(packed, str(request.model_hash))))
    return replace(request, media=tuple(media))


@pytest.mark.parametrize("name", PACKINGS)
@given(values=arrays(np.float16, (3, 64), elements=st.floats(-60000, 60000, width=16)))
def test_what_comes_back_is_near(name: str, values: np.ndarray[Any, Any]) -> None:
    packing = PACKINGS[name]
    found = unpack(pack(values, packing))
    assert (found.dtype, found.shape) == (np.dtype(packing.unpacked), values.shape)
    blocks = (3, -1, packing.group or 64)
    largest = np.abs(values.astype(np.float64)).reshape(blocks).max(axis=2, keepdims=True)
    error = np.abs(found.astype(np.float64) - values.astype(np.float64)).reshape(blocks)
    # A scale below float16's normal range has fewer bits than others.
    floor = 0 if name == "bf16" else packing.largest * 2.0**-25 + 2.0**-25
    assert (error <= ERRORS[name] * largest + floor).all()


def test_bfloat16_is_that_of_other_libraries_and_holds_what_float16_cannot() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1e6, 1022), [1e38, 1e-38]]).astype(np.float32)
    packed = pack(values.reshape(16, 64), PACKINGS["bf16"])
    assert (packed.codes.reshape(-1) == values.astype(ml_dtypes.bfloat16).view(np.uint16)).all()
    assert (unpack(packed).reshape(-1) == values.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("name", PACKINGS)
def test_zeros_stay_zeros(name: str) -> None:
    assert not unpack(pack(np.zeros((2, 64), np.float16), PACKINGS[name])).any()
    assert unpack(pack(np.zeros((0, 64), np.float16), PACKINGS[name])).shape == (0, 64)


def test_e4m3_is_that_of_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(e4m3_values(), codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    within = halves[np.abs(halves) <= 448]
    scaled = pack(np.concatenate([within, [np.float16(448)]])[None], PACKINGS["fp8"])
    assert scaled.scales.tolist() == [[1.0]]
    expected = within.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(scaled.codes[0, :-1], expected)


@pytest.mark.parametrize("name", PACKINGS)
def test_both_ends_hold_the_same(name: str) -> None:
    request = request_of(name)
    body = encode_request(request)
    found = decode_request(bytes(body))
    for sent, came in zip(request.media, found.media, strict=True):
        np.testing.assert_array_equal(came.embeds, sent.embeds)
        for one, other in zip(came.deepstack, sent.deepstack, strict=True):
            np.testing.assert_array_equal(one, other)
        assert came.origin["wire"] == name
        assert came.hash == embedding_hash(came, str(request.model_hash))
        assert came.packed == ()
        medium, _ = decode_medium(bytes(encode_medium(sent, str(request.model_hash))))
        np.testing.assert_array_equal(medium.embeds, sent.embeds)
    unpacked = replace(request, media=tuple(replace(item, packed=()) for item in request.media))
    plain = encode_request(unpacked).size
    tensors = sum(item.nbytes for item in request.media)
    saved = tensors - sum(packed.nbytes for item in request.media for packed in item.packed)
    assert plain - saved < body.size < plain - saved + 1500  # names and places of the scales
    again = decode_request(bytes(body), keep_packed=True)
    assert body_of(again) == bytes(body)


@pytest.mark.parametrize("name", PACKINGS)
def test_a_wide_row_takes_half_the_bytes_or_less(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((196, 2048)).astype(np.float16)
    assert pack(values, PACKINGS[name]).nbytes < BYTES[name] * values.nbytes


def test_a_body_says_that_it_is_packed() -> None:
    request = request_of("int8")
    body = body_of(request)
    with pytest.raises(WireError, match="no packed media"):
        decode_request(with_document(body, version=PACKED_VERSION - 1))
    by_hash = encode_request(request, [str(item.hash) for item in request.media])
    assert b'"version\\":2' in bytes(by_hash.buffers[0])  # nothing packed is sent


def test_what_would_be_large_once_unpacked_is_refused_before() -> None:
    request = request_of("int4")
    body, unpacked = body_of(request), sum(item.nbytes for item in request.media)
    assert len(body) < unpacked
    decode_request(body, Limits(max_body_bytes=unpacked))
    with pytest.raises(LimitError, match="once unpacked"):
        decode_request(body, Limits(max_body_bytes=unpacked - 1))


@pytest.mark.parametrize("name", ["int2", "", None, 8, ["int8"]])
def test_an_unknown_packing_is_refused(name: Any) -> None:
    request = request_of("int8")
    media = [{"kind": item.kind, "levels": len(item.deepstack), "packing": name} for item in request.media]
    with pytest.raises(ContractError):
        decode_request(with_document(body_of(request), media=media))


def test_scales_must_fit() -> None:
    codes = np.ones((4, 6), np.int8)
    for shape in ((1, 1), (4, 1), (1, 6), (4, 3)):
        check_packed(Packed(PACKINGS["int8"], codes, np.ones(shape, np.float16)), "x")
        assert (unpack(Packed(PACKINGS["int8"], codes, np.ones(shape, np.float16))) == 1).all()
    for shape in ((2, 1), (4, 4), (1, 0), (0, 1)):
        with pytest.raises(WireError, match="scales do not fit"):
            check_packed(Packed(PACKINGS["int8"], codes, np.ones(shape, np.float16)), "x")
    for value in (np.nan, np.inf, -1.0):
        with pytest.raises(WireError, match="finite and non-negative"):
            check_packed(Packed(PACKINGS["int8"], codes, np.full((4, 1), value, np.float16)), "x")


def test_scales_missing_or_of_another_type_are_refused() -> None:
    body = body_of(request_of("int8"))

    def rename(table: dict[str, Any]) -> None:
        table["embeds.9.scales"] = table.pop("embeds.0.scales")

    def retype(table: dict[str, Any]) -> None:
        table["embeds.0.scales"]["dtype"] = "BF16"

    for edit in (rename, retype):
        with pytest.raises(WireError, match=r"embeds\.0\.scales"):
            decode_request(with_header(body, edit))


def test_the_first_tensors_are_finer() -> None:
    """int8-int4: the embeddings and the first DeepStack level as int8 has them, the others as int4."""
    request = request_of("int8-int4")
    as_one = {name: request_of(name) for name in ("int8", "int4")}
    for index, item in enumerate(request.media):
        assert [packed.packing.dtype for packed in item.packed] == ["I8", "I8", *["U8"] * (len(item.deepstack) - 1)]
        for tensor, array in enumerate(item.arrays):
            same = as_one["int8" if tensor < 2 else "int4"].media[index].arrays[tensor]
            np.testing.assert_array_equal(array, same)
    with pytest.raises(WireError, match="no packing by tensor"):
        decode_request(with_document(body_of(request), version=MIXED_VERSION - 1))
    assert b'"version\\":3' in body_of(as_one["int4"])  # what older servers read is sent as before


def test_coefficients_are_not_packed_by_tensor() -> None:
    request = request_of("int8-int4")
    media = [
        {"kind": item.kind, "levels": len(item.deepstack), "packing": "int8-int4", "basis": "0" * 64}
        for item in request.media
    ]
    with pytest.raises(WireError, match="coefficients are not packed by tensor"):
        decode_request(with_document(body_of(request), media=media))


def test_finer_first_tensors_beyond_float16() -> None:
    """Scales of both kinds are float32 then."""
    item = make_case("image and clip").request.media[0]
    large = [array.astype(np.float32) * np.float32(1e6) for array in item.arrays]
    sent = pack_media(replace(item, embeds=large[0], deepstack=tuple(large[1:])), PACKINGS["int8-int4"])
    assert {packed.scales.dtype for packed in sent.packed} == {np.dtype(np.float32)}
    (found,) = decode_request(bytes(encode_request(make_request(media=(sent,))))).media
    for came, array, exact in zip(found.arrays, sent.arrays, large, strict=True):
        np.testing.assert_array_equal(came, array)
        assert np.abs(came - exact).max() <= ERRORS["int4"] * np.abs(exact).max()
