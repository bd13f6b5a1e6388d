"""Coefficients in a basis: rows the same to the bit wherever they are made, on the wire, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.errors import InputError, LimitError, ModelMismatchError, WireError
from qwen3vl_edge.contract.wire.basis import Basis, TensorBasis, bases_of, basis_file, parse_basis, read_basis
from qwen3vl_edge.contract.wire.codec import VERSIONS, decode_medium, decode_request, encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.media_codec import BASIS_VERSION
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, PACKINGS, unpack
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, pack_media
from tests.support.server_checkpoint import HIDDEN, LEVELS, make_case
from tests.support.wire_bodies import body_of, with_document

RANK = 32


def tensor_basis(seed: int, columns: int = HIDDEN, rank: int = RANK) -> TensorBasis:
    """Of orthogonal directions, the first a hundred times as long as the last."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.standard_normal((columns, columns)))[0][:rank]
    lengths = np.geomspace(20_000, 200, rank)[:, None]
    mean = random.standard_normal(columns).astype(np.float32)
    return TensorBasis(mean, np.rint(directions * lengths).astype(np.int16), -12)


def basis_of(model_hash: str, **sizes: int) -> Basis:
    return parse_basis(basis_file([tensor_basis(seed, **sizes) for seed in range(1 + LEVELS)], model_hash))


def request_of(basis: Basis, packing: str = "int8") -> GenerateRequest:
    request = make_case("image and clip").request
    media = []
    for item in request.media:
        halves = replace(item, embeds=item.embeds.astype(np.float16), deepstack=tuple(map(np.float16, item.deepstack)))
        packed = pack_media(halves, PACKINGS[packing], basis)
        media.append(replace(packed, hash=embedding_hash(packed, str(request.model_hash))))
    return replace(request, media=tuple(media))


@pytest.fixture(scope="module")
def basis() -> Basis:
    return basis_of(str(make_case("image and clip").request.model_hash))


def test_rows_are_those_of_exact_arithmetic() -> None:
    """Products and sums in fractions, the one rounding of the addition, then float16: to the bit."""
    tensor = tensor_basis(5)
    random = np.random.default_rng(6)
    coefficients = np.float16(random.standard_normal((3, RANK)) * np.geomspace(200, 0.01, RANK))
    coefficients[0, 0], coefficients[1, 0] = np.float16(3e4), np.float16(-3e4)  # beyond the largest step
    found = tensor.rows(coefficients)
    for row, values in zip(coefficients, found, strict=True):
        steps = [max(-(2**20), min(2**20, round(Fraction(float(value)) * 4096))) for value in row]
        for column in range(HIDDEN):
            whole = sum(step * int(tensor.directions[at, column]) for at, step in enumerate(steps))
            exact = float(Fraction(whole, 4096) * Fraction(2) ** tensor.exponent)  # fewer than 53 bits
            assert values[column] == np.float16(exact + float(tensor.mean[column]))


def test_rows_do_not_depend_on_how_many_there_are_or_how_products_are_added() -> None:
    tensor = tensor_basis(7, columns=2048, rank=512)
    coefficients = np.float16(np.random.default_rng(8).standard_normal((300, 512)) * 20)
    found = tensor.rows(coefficients)
    for at in (0, 255, 256, 299):
        np.testing.assert_array_equal(tensor.rows(coefficients[at : at + 1])[0], found[at])
    order = np.random.default_rng(9).permutation(512)
    other = TensorBasis(tensor.mean, np.ascontiguousarray(tensor.directions[order]), tensor.exponent)
    np.testing.assert_array_equal(other.rows(coefficients[:, order]), found)


def test_coefficients_of_what_lies_in_the_basis_come_back() -> None:
    tensor = tensor_basis(3)
    coefficients = np.random.default_rng(4).standard_normal((20, RANK)).astype(np.float32)
    rows = tensor.rows(coefficients).astype(np.float32)
    np.testing.assert_allclose(tensor.coefficients(rows), coefficients, atol=0.12)  # float16, along short directions
    np.testing.assert_allclose(tensor.rows(tensor.coefficients(rows)), rows, atol=4e-3, rtol=2e-3)


@pytest.mark.parametrize("name", BASIS_PACKINGS)
def test_both_ends_hold_the_same(basis: Basis, name: str) -> None:
    request = request_of(basis, BASIS_PACKINGS[name].name)
    body = body_of(request)
    found = decode_request(body, bases=bases_of(basis))
    for sent, came in zip(request.media, found.media, strict=True):
        for one, other in zip(sent.arrays, came.arrays, strict=True):
            assert other.dtype == np.float16
            np.testing.assert_array_equal(one, other)
        assert came.origin["wire"] == name
        assert came.origin["basis"] == basis.sha256
        assert came.hash == embedding_hash(came, str(request.model_hash))
        assert (came.packed, came.basis) == ((), None)
        medium, _ = decode_medium(bytes(encode_medium(sent, str(request.model_hash))), bases=bases_of(basis))
        np.testing.assert_array_equal(medium.embeds, sent.embeds)
    again = decode_request(body, bases=bases_of(basis), keep_packed=True)
    assert body_of(again) == body
    assert [unpack(packed).shape[1] for packed in request.media[0].packed] == list(basis.ranks)


def test_a_basis_that_is_not_held_is_named(basis: Basis) -> None:
    body = body_of(request_of(basis))
    with pytest.raises(ModelMismatchError, match=r"basis that the server does not have.*--wire-basis") as caught:
        decode_request(body)
    assert caught.value.field == "media.0.basis"
    assert basis.sha256 in str(caught.value)
    with pytest.raises(WireError, match="no bases"):
        decode_request(with_document(body, version=BASIS_VERSION - 1), bases=bases_of(basis))
    assert BASIS_VERSION in VERSIONS


@pytest.mark.parametrize("name", ["", 5, ["x"], "f" * 63, {"a": 1}])
def test_no_name_of_a_basis(basis: Basis, name: Any) -> None:
    request = request_of(basis)
    media = [
        {"kind": item.kind, "levels": len(item.deepstack), "packing": "int8", "basis": name} for item in request.media
    ]
    with pytest.raises(WireError, match="invalid basis name"):
        decode_request(with_document(body_of(request), media=media), bases=bases_of(basis))


def test_a_basis_is_of_packed_coefficients(basis: Basis) -> None:
    request = make_case("image and clip").request
    media = [
        {"kind": item.kind, "levels": len(item.deepstack), "origin": {}, "basis": basis.sha256}
        for item in request.media
    ]
    body = with_document(body_of(request), version=BASIS_VERSION, media=media)
    with pytest.raises(WireError, match="a basis without a packing"):
        decode_request(body, bases=bases_of(basis))


def test_coefficients_must_fit(basis: Basis) -> None:
    request = request_of(basis)
    other = basis_of(str(request.model_hash), rank=64)
    media = [
        {"kind": item.kind, "levels": len(item.deepstack), "packing": "int8", "basis": other.sha256}
        for item in request.media
    ]
    with pytest.raises(WireError, match="do not fit their basis"):
        decode_request(with_document(body_of(request), media=media), bases=bases_of(other))
    fewer = parse_basis(basis_file(basis.tensors[:-1], "0" * 64))
    media = [{**item, "basis": fewer.sha256} for item in media]
    with pytest.raises(WireError, match="wrong number of tensors for the basis"):
        decode_request(with_document(body_of(request), media=media), bases=bases_of(fewer))
    with pytest.raises(WireError, match="wrong number of tensors for the basis"):
        pack_media(make_case("image and clip").request.media[0], PACKINGS["int8"], fewer)


def test_what_would_be_large_once_unpacked_is_refused_before(basis: Basis) -> None:
    request = request_of(basis, "int4")
    body, unpacked = body_of(request), sum(item.nbytes for item in request.media)
    held = bases_of(basis)
    assert len(body) < unpacked
    decode_request(body, Limits(max_body_bytes=unpacked), bases=held)
    with pytest.raises(LimitError, match="once unpacked"):
        decode_request(body, Limits(max_body_bytes=unpacked - 1), bases=held)


def test_a_file_is_read_as_it_was_written(basis: Basis, tmp_path: Path) -> None:
    path = tmp_path / "basis.safetensors"
    path.write_bytes(basis_file(basis.tensors, basis.model_hash))
    found = bases_of(None, read_basis(path, basis.model_hash, "wire_basis"))
    assert list(found) == [basis.sha256]
    assert found[basis.sha256].ranks == (RANK,) * (1 + LEVELS)
    with pytest.raises(InputError, match="another model"):
        read_basis(path, "0" * 64, "wire_basis")
    with pytest.raises(InputError, match=r"cannot be read.*wire_basis|cannot be read"):
        read_basis(tmp_path / "missing", basis.model_hash, "wire_basis")


def test_a_file_that_is_none_is_refused(basis: Basis, tmp_path: Path) -> None:
    whole = basis_file(basis.tensors, basis.model_hash)
    bad = [b"", whole[:-1], whole + b"x", whole.replace(b'\\"version\\": 1', b'\\"version\\": 2'), b"\xff" * 64]
    bad.append(basis_file([replace(basis.tensors[0], directions=basis.tensors[0].directions[:5])], "a"))
    bad.append(basis_file([replace(basis.tensors[0], mean=np.full(HIDDEN, np.nan, np.float32))], "a"))
    bad.append(basis_file([replace(basis.tensors[0], mean=np.zeros(HIDDEN + 1, np.float32))], "a"))
    bad.append(basis_file([replace(basis.tensors[0], exponent=99)], "a"))
    bad.append(bytes(encode_request(make_case("image and clip").request)))
    for index, content in enumerate(bad):
        path = tmp_path / f"{index}"
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a basis file"):
            read_basis(path, basis.model_hash, "wire_basis")
