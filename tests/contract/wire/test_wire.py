"""The wire format: round trips, the safetensors library as a peer, and every malformed body named."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError, LimitError, WireError
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import Limits, MediaEmbeddings, Sampling
from tests.support.wire_bodies import (
    HeaderEdit,
    assert_same,
    body_of,
    make_media,
    make_request,
    with_document,
    with_header,
)


def test_round_trip_keeps_everything() -> None:
    request = make_request()
    assert_same(decode_request(body_of(request)), request)


def test_penalties_and_biases_are_sent_only_if_set() -> None:
    """A server that does not know their names refuses only requests that use them."""
    sampling = Sampling(presence_penalty=-2.0, frequency_penalty=0.5, logit_bias=((7, -100.0), (300, 1.5)))
    request = make_request(sampling=sampling)
    assert_same(decode_request(body_of(request)), request)
    assert Sampling.from_dict({"logit_bias": {"300": 1.5, "7": -100}}).logit_bias == sampling.logit_bias
    assert hash(sampling) != hash(Sampling())
    added = {"presence_penalty", "frequency_penalty", "logit_bias"}
    assert sampling.to_dict().keys() - Sampling().to_dict().keys() == added
    assert sampling.penalties.keys() == added
    assert Sampling(repetition_penalty=1.1).penalties == {"repetition_penalty": 1.1}
    assert Sampling().penalties == {}


@given(
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    frames=st.integers(1, 3),
    dtype=st.sampled_from(["float16", "float32"]),
    length=st.integers(1, 50),
)
@settings(max_examples=50, deadline=None)
def test_round_trip_of_any_shape(height: int, width: int, frames: int, dtype: str, length: int) -> None:
    media = (make_media("video", Grid(frames, 2 * height, 2 * width), dtype=dtype),)
    request = make_request(media=media, input_ids=np.arange(length, dtype=np.int64), attention_mask=None)
    assert_same(decode_request(body_of(request)), request)


def test_text_only_round_trip() -> None:
    request = make_request(media=())
    assert_same(decode_request(body_of(request)), request)


def test_encode_and_decode_share_memory() -> None:
    request = make_request()
    sent = encode_request(request)
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), request.media[0].embeds) for buffer in sent.buffers)
    body = bytearray(bytes(sent))
    decoded = decode_request(body)
    assert np.shares_memory(decoded.media[0].embeds, np.frombuffer(body, np.uint8))
    assert sent.size == len(body)


def test_overhead_is_under_one_percent_for_a_real_picture() -> None:
    grid = Grid(1, 28, 28)
    arrays = [np.zeros((196, 2048), np.float16) for _ in range(4)]
    request = make_request(media=(MediaEmbeddings("image", grid, arrays[0], tuple(arrays[1:])),))
    raw = sum(array.nbytes for array in arrays)
    assert len(body_of(request)) <= 1.01 * raw


def test_safetensors_library_reads_and_writes_the_same_bytes() -> None:
    request = make_request()
    tensors = safetensors_load(body_of(request))
    np.testing.assert_array_equal(tensors["deepstack.1.2"], request.media[1].deepstack[2])
    header_size = int.from_bytes(body_of(request)[:8], "little")
    document = json.loads(body_of(request)[8 : 8 + header_size])["__metadata__"]
    assert_same(decode_request(safetensors_save(tensors, metadata=document)), request)


def edit_header(edit: HeaderEdit) -> bytes:
    return with_header(body_of(make_request()), edit)


def edit_document(**changes: object) -> bytes:
    return with_document(body_of(make_request()), **changes)


def huge_claim(table: dict) -> None:  # type: ignore[type-arg]
    table["embeds.0"] = {"dtype": "F32", "shape": [2**40, 8], "data_offsets": [0, 2**45]}


GOOD = body_of(make_request())
NAMED = [{"kind": "image", "by_hash": True, "hash": "ab" * 32}] * 2
MALFORMED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "header"),
    ("seven bytes", GOOD[:7], "header"),
    ("header cut", GOOD[:60], "header"),
    ("data cut", GOOD[:-1], "body"),
    ("data appended", GOOD + b"x", "body"),
    ("zero header", bytes(8) + GOOD[8:], "header"),
    ("giant header", b"\xff" * 8 + GOOD[8:], "header"),
    ("not JSON", (4).to_bytes(8, "little") + b"{{{{", "header"),
    ("JSON list", (2).to_bytes(8, "little") + b"[]", "header"),
    ("deep JSON", (4_000).to_bytes(8, "little") + b"[" * 4_000, "header"),
    ("no document", edit_header(lambda table: table["__metadata__"].clear()), "request"),
    ("metadata of numbers", edit_header(lambda table: table["__metadata__"].update(a=1)), "__metadata__"),
    ("unknown dtype", edit_header(lambda table: table["input_ids"].update(dtype="I128")), "input_ids"),
    ("bad dtype for the wire", edit_header(lambda table: table["input_ids"].update(dtype="F64")), "input_ids"),
    ("negative shape", edit_header(lambda table: table["input_ids"].update(shape=[-40])), "input_ids"),
    ("shape of floats", edit_header(lambda table: table["input_ids"].update(shape=[40.0])), "input_ids"),
    ("shape too large", edit_header(lambda table: table["input_ids"].update(shape=[41])), "input_ids"),
    ("huge claim", edit_header(huge_claim), "embeds.0"),
    ("missing tensor", edit_header(lambda table: table.pop("attention_mask")), ""),
    ("wrong version", edit_document(version=7), "version"),
    ("version as bool", edit_document(version=True), "version"),
    ("no version", edit_document(version=None), "version"),
    ("version as text", edit_document(version="1"), "version"),
    ("hash is a number", edit_document(model_hash=5), "model_hash"),
    ("stream is text", edit_document(stream="yes"), "stream"),
    ("media is a map", edit_document(media={}), "media"),
    ("media too short", edit_document(media=[]), ""),
    ("unknown kind", edit_document(media=[{"kind": "audio", "levels": 3}] * 2), "media.0.kind"),
    ("levels as text", edit_document(media=[{"kind": "image", "levels": "3"}] * 2), "media.0"),
    ("more levels than sent", edit_document(media=[{"kind": "image", "levels": 4}] * 2), "deepstack.0.3"),
    ("fewer levels than sent", edit_document(media=[{"kind": "image", "levels": 2}] * 2), "deepstack.0.2"),
    ("hash too short", edit_document(media=[{"kind": "image", "levels": 3, "hash": "ab"}] * 2), "media.0.hash"),
    ("by hash without one", edit_document(media=[{"kind": "image", "by_hash": True}] * 2), "media.0.hash"),
    ("by hash in version 1", edit_document(media=NAMED), ""),
    ("by hash with tensors", edit_document(version=2, media=NAMED), "deepstack.0.0"),
    ("by hash with levels", edit_document(version=2, media=[{**NAMED[0], "levels": 3}] * 2), "media.0.levels"),
    ("by hash as text", edit_document(version=2, media=[{**NAMED[0], "by_hash": "yes"}] * 2), "media.0"),
    ("sampling is a list", edit_document(sampling=[]), "sampling"),
    ("unknown sampling", edit_document(sampling={"beams": 4}), "sampling.beams"),
    ("temperature 0", edit_document(sampling={"temperature": 0}), "sampling.temperature"),
    ("presence_penalty of 3", edit_document(sampling={"presence_penalty": 3}), "sampling.presence_penalty"),
    ("frequency_penalty null", edit_document(sampling={"frequency_penalty": None}), "sampling.frequency_penalty"),
    ("biases in a list", edit_document(sampling={"logit_bias": [[7, 1]]}), "sampling.logit_bias"),
    ("too many biases", edit_document(sampling={"logit_bias": dict.fromkeys(range(301), 0)}), "sampling.logit_bias"),
    ("bias of a word", edit_document(sampling={"logit_bias": {"the": 1}}), "sampling.logit_bias"),
    ("bias of a token twice", edit_document(sampling={"logit_bias": {"7": 1, "07": 1}}), "sampling.logit_bias"),
    ("bias of a token of 70 bits", edit_document(sampling={"logit_bias": {str(2**70): 1}}), "sampling.logit_bias"),
    ("bias of 101", edit_document(sampling={"logit_bias": {"7": 101}}), "sampling.logit_bias.7"),
    ("bias as text", edit_document(sampling={"logit_bias": {"7": "1"}}), "sampling.logit_bias.7"),
    ("bias as bool", edit_document(sampling={"logit_bias": {"7": True}}), "sampling.logit_bias.7"),
    ("tokens as bool", edit_document(sampling={"max_new_tokens": True}), "sampling.max_new_tokens"),
]


@pytest.mark.parametrize(("body", "field"), [item[1:] for item in MALFORMED], ids=[item[0] for item in MALFORMED])
def test_malformed_body_is_named(body: bytes, field: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_request(body)
    if field:
        assert caught.value.field == field
    assert "\n" not in str(caught.value)
    assert caught.value.to_openai()["error"]


def test_repeated_name_is_refused() -> None:
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    with pytest.raises(WireError, match="repeats"):
        decode_request(len(text).to_bytes(8, "little") + text + b"x")


@pytest.mark.parametrize("limits", [Limits(max_body_bytes=100), Limits(max_media=1)])
def test_limits(limits: Limits) -> None:
    with pytest.raises(LimitError) as caught:
        decode_request(GOOD, limits)
    assert caught.value.status == 413


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
@settings(max_examples=500, deadline=None)
def test_damaged_bodies_never_crash(position: int, value: int, cut: int) -> None:
    body = bytearray(GOOD)
    body[position] = value
    for candidate in (bytes(body), bytes(body[:cut])):
        with contextlib.suppress(ContractError):
            decode_request(candidate)
