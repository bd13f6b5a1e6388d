"""Every wire form stays within the error that its own arithmetic explains; a wrong code or tensor does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.basis import Basis, TensorBasis, basis_file, parse_basis
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, PACKINGS, WIRE_DTYPES, e4m3_values
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings
from qwen3vl_edge.tools.parity import wire_forms
from qwen3vl_edge.tools.parity.gate import judge_wire
from qwen3vl_edge.tools.parity.wire_forms import WireRow, explained_error, measure_wire_forms

NAMES = ("embeds", "deepstack.0")
ROWS, COLUMNS, RANK = 16, 128, 64
HASH = "0" * 64


def outputs(dtype: Any = np.float32) -> dict[Grid, Embeddings]:
    """Values of both signs and many sizes, with a channel that stands out, on two grids."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 2, ROWS, COLUMNS)) * np.exp(rng.standard_normal((2, 2, ROWS, 1)))
    values[..., 5] *= 20
    return {
        grid: Embeddings(one[0].astype(dtype), (one[1].astype(dtype),))
        for grid, one in zip((Grid(1, 8, 8), Grid(2, 4, 8)), values, strict=True)
    }


@pytest.fixture(scope="module")
def basis() -> Basis:
    rng = np.random.default_rng(1)
    tensors = [
        TensorBasis(
            rng.standard_normal(COLUMNS).astype(np.float32),
            rng.integers(-(2**14), 2**14, (RANK, COLUMNS)).astype(np.int16),
            -14,
        )
        for _ in NAMES
    ]
    return parse_basis(basis_file(tensors, HASH))


def measured(basis: Basis | None, dtype: Any = np.float32) -> dict[tuple[str, str], WireRow]:
    rows, _ = measure_wire_forms(outputs(dtype), NAMES, HASH, basis)
    return {(row.form, row.output): row for row in rows}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sound_forms_are_within_their_arithmetic(basis: Basis, dtype: Any) -> None:
    rows = measured(basis, dtype)
    assert set(rows) == {(form, name) for form in WIRE_DTYPES for name in NAMES}
    assert all(row.passed and row.grids == 2 for row in rows.values()), rows
    assert all(row.passed for row in judge_wire(list(rows.values())))
    for form in ("bf16", "fp8", "int8", "int4"):  # the bound is as tight as it can be: some value comes near it
        if dtype == np.float32:
            assert rows[form, "embeds"].steps > 0.8, form
    assert rows["fp32", "embeds"].distance.max_abs == 0


def test_values_beyond_float16_are_held_to_the_same_arithmetic() -> None:
    large = {
        grid: Embeddings(item.embeds * 1e5, tuple(level * 1e5 for level in item.deepstack))
        for grid, item in outputs().items()
    }
    rows, without = measure_wire_forms(large, NAMES, HASH, None)
    assert {row.form for row in rows} == {"fp32", *PACKINGS}
    assert all(row.passed for row in rows), rows
    assert "wire form fp16" in without


def wrong_order(media: MediaEmbeddings) -> MediaEmbeddings:
    return replace(media, embeds=media.deepstack[0], deepstack=(media.embeds,))


def one_value(media: MediaEmbeddings) -> MediaEmbeddings:
    """Its smallest value with the other sign and twice its row's largest: no cosine of the whole sees it in int4."""
    embeds = np.array(media.embeds)
    row = int(np.abs(embeds).max(axis=1).argmin())
    column = int(np.abs(embeds[row]).argmin())
    embeds[row, column] = 2 * np.abs(embeds[row]).max()
    return replace(media, embeds=embeds)


@pytest.mark.parametrize("fault", [wrong_order, one_value])
def test_a_fault_of_the_codec_is_beyond(
    monkeypatch: pytest.MonkeyPatch, basis: Basis, fault: Callable[[MediaEmbeddings], MediaEmbeddings]
) -> None:
    decode = wire_forms.decode_request

    def faulty(*arguments: Any, **options: Any) -> GenerateRequest:
        request = decode(*arguments, **options)
        return replace(request, media=tuple(map(fault, request.media)))

    monkeypatch.setattr(wire_forms, "decode_request", faulty)
    rows = measured(basis)
    assert [form for form in WIRE_DTYPES if rows[form, "embeds"].passed] == []
    failed = [str(row) for row in judge_wire(list(rows.values())) if not row.passed]
    assert any(row.startswith("wire int4 embeds: largest error over the largest explained ") for row in failed)


def test_what_a_form_explains_follows_from_its_definition() -> None:
    """One row of 4 and 1: int8's step is 4 / 127; E4M3 has 4 bits, so half a step of 1 / 4 of 448 is 2^-4 of it."""
    values = np.array([[4.0, 1.0] + [0.0] * 30])
    half = 2.0**-11
    assert explained_error(values, "fp16")[0, 1] == pytest.approx(half, rel=1e-3)
    assert explained_error(values, "bf16")[0, 1] == pytest.approx(2.0**-8)
    assert explained_error(values, "int8")[0, 1] == pytest.approx(2 / 127 + 2 * half, rel=2e-3)
    assert explained_error(values, "int4")[0, 1] == pytest.approx(2 / 7 + 2 * half, rel=2e-3)
    # Of the largest, four fifths of its scale clip all beyond 7 codes, 8 below zero.
    assert explained_error(values, "int4")[0, 0] == pytest.approx(4 - 0.8 * 4, rel=2e-2)
    assert explained_error(-values, "int4")[0, 0] == pytest.approx(4 - 0.8 * 4 * 8 / 7, rel=5e-2)
    assert explained_error(values, "fp8")[0, 1] == pytest.approx(2.0**-4 + 2 * half, rel=5e-3)
    near = e4m3_values()[:127] / 448 * 4
    assert np.abs(near - 1).min() <= explained_error(values, "fp8")[0, 1]
    assert set(PACKINGS) | set(BASIS_PACKINGS) | {"fp16", "fp32"} == set(WIRE_DTYPES)


def test_a_form_that_cannot_take_them_is_told(basis: Basis) -> None:
    large = {Grid(1, 8, 8): Embeddings(np.full((ROWS, COLUMNS), 1e6, np.float32), ())}
    rows, without = measure_wire_forms(large, NAMES[:1], HASH, None)
    assert {row.form for row in rows} >= {"fp32", "bf16"}
    assert "fp16" not in {row.form for row in rows}
    assert "float16" in without["wire form fp16"]
    assert without["wire form basis-int8"] == "the bundle has no basis"
