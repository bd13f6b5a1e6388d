"""int4's scales: any decoder reads what the sender chose, and no group is worse off than with its largest value's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.packing import PACKINGS, Packed, pack, unpack
from qwen3vl_edge.contract.wire.request import MediaEmbeddings, pack_media

INT4 = PACKINGS["int4"]
GROUP = 32
Values = NDArray[np.float64]


def groups(kind: str) -> Values:
    """[16, 128]: four groups a row."""
    random = np.random.default_rng(0)
    drawn = {
        "normal": random.standard_normal((16, 128)),
        "heavy tails": random.standard_t(2, (16, 128)),
        "one outlier": random.standard_normal((16, 128)) * 0.1,
        "below zero": -np.abs(random.standard_normal((16, 128))),
        "constant": np.full((16, 128), -3.7),
        "zeros": np.zeros((16, 128)),
        "subnormal": random.standard_normal((16, 128)) * 2.0**-22,
        "near float16's largest": random.uniform(-65504, 65504, (16, 128)),
        "beyond float16": random.standard_normal((16, 128)) * 1e6,
        "near float32's largest": random.standard_normal((16, 128)) * 1e37,
    }[kind]
    if kind == "one outlier":
        drawn[:, 7::GROUP] = random.choice([-30.0, 30.0], (16, 4))
    return np.asarray(drawn, np.float32).astype(np.float64)


def read(packed: Packed) -> Values:
    """As the wire format's page defines it: the first column in the low 4 bits, 8 is zero, times its group's scale."""
    codes = np.stack([packed.codes & 15, packed.codes >> 4], axis=2).astype(np.int64) - 8
    rows = len(packed.codes)
    return (codes.reshape(rows, -1, GROUP) * packed.scales.astype(np.float64)[:, :, None]).reshape(rows, -1)


def by_the_largest(values: Values, dtype: Any) -> Values:
    """What the largest value over 7, the rule of older senders, makes of each group."""
    blocks = values.reshape(len(values), -1, GROUP)
    scales = (np.abs(blocks).max(axis=2, keepdims=True) / 7).astype(dtype).astype(np.float64)
    codes = np.clip(np.rint(blocks / np.where(scales == 0, 1, scales)), -7, 7)
    return (codes * scales).reshape(values.shape)


def squares(error: Values) -> Values:
    """[rows, groups]."""
    return (error.reshape(len(error), -1, GROUP) ** 2).sum(axis=2)


@pytest.mark.parametrize(
    ("kind", "gain"),
    [
        ("normal", 0.85),
        ("heavy tails", 0.9),
        ("one outlier", 1.0),
        ("below zero", 0.85),
        ("constant", 1.0),
        ("zeros", 1.0),
        ("subnormal", 1.0),
        ("near float16's largest", 0.95),
        ("beyond float16", 0.85),
        ("near float32's largest", 0.85),
    ],
)
def test_no_group_is_further_off(kind: str, gain: float) -> None:
    """Squared errors against the older rule's: no group's is larger, and their sum is a part of its."""
    values = groups(kind)
    wide = float(np.abs(values).max()) > 65504
    packing = INT4.wide if wide else INT4
    if not wide:
        values = values.astype(np.float16).astype(np.float64)
    packed = pack(values.astype(np.float32), packing)
    found, older = read(packed), by_the_largest(values, packed.scales.dtype)
    scale = max(float(np.abs(values).max()), 1e-30)
    ours, theirs = squares((found - values) / scale), squares((older - values) / scale)
    assert (ours <= theirs * (1 + 1e-5) + 1e-12).all()
    assert ours.sum() <= gain * theirs.sum() + 1e-12
    np.testing.assert_array_equal(unpack(packed), found.astype(np.float32 if wide else np.float16))


def test_what_is_exact_stays_exact() -> None:
    """A group of whole steps has the largest value over 7 as its scale, as senders always had it."""
    values = np.zeros((1, GROUP), np.float16)
    values[0, 3] = 7
    packed = pack(values, INT4)
    assert packed.scales.tolist() == [[1.0]]
    assert (unpack(packed) == values).all()


def test_one_scale_to_try_gives_the_older_codes() -> None:
    """The search alone makes the difference."""
    values = groups("normal").astype(np.float16)
    older = replace(INT4, shrinks=(1.0,), lowest=-7.0)
    np.testing.assert_array_equal(read(pack(values, older)), by_the_largest(values.astype(np.float64), np.float16))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("largest", [57_000, 60_000, 63_000, 65_504])
def test_what_float16_holds_is_not_sent_wide(largest: float, sign: int) -> None:
    """The lowest code reaches further than the largest; what matters is what the codes in use give."""
    rows = np.full((4, GROUP), sign * largest / 3, np.float16)
    rows[:, 0] = sign * largest
    sent = pack_media(MediaEmbeddings("image", Grid(1, 4, 4), rows, ()), INT4)
    assert np.isfinite(sent.embeds).all()
    if largest < 65_504:
        assert not sent.wide_packed
