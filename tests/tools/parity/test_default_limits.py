"""The default limits of fp32 notice what a cosine does not: one altered row, one bias, a hundredth of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.parity.encoder import EncoderRow, compare_encoders
from qwen3vl_edge.tools.parity.pictures import draw_picture
from tests.support.encoders.faulty_bundle import with_weight_edited


def noise(weights: Any) -> None:
    """A hundredth of the weights' own spread."""
    weights += np.random.default_rng(0).normal(0, 0.01 * float(weights.std()), weights.shape).astype(np.float32)


def one_row(weights: Any) -> None:
    weights[3] *= 1.3


def one_bias(weights: Any) -> None:
    weights[3] += 0.5


FAULTS: list[tuple[str, Callable[[Any], None]]] = [
    ("blocks.3.mlp.linear_fc1.weight", noise),
    ("blocks.5.mlp.linear_fc2.weight", noise),
    ("blocks.0.attn.proj.weight", noise),
    ("patch_embed.proj.weight", noise),
    ("blocks.2.mlp.linear_fc1.weight", one_row),
    ("blocks.4.mlp.linear_fc1.bias", one_bias),
]


@pytest.fixture(scope="module")
def oracle(reference: Path) -> PytorchBackend:
    return PytorchBackend(open_checkpoint(str(reference)))


def rows(bundle: Path, oracle: PytorchBackend) -> list[EncoderRow]:
    options = EdgeOptions(wire_dtype="fp32", backend_options=BackendOptions(precision="fp32"))
    with open_edge(bundle, options) as edge:
        return compare_encoders(edge, oracle, {"one": draw_picture(0)})


def test_a_sound_bundle_is_far_within(small_bundle: Path, oracle: PytorchBackend) -> None:
    found = rows(small_bundle, oracle)
    assert found
    assert all(row.passed for row in found)
    assert max(row.distance.relative_l2 for row in found) < 1e-5


@pytest.mark.parametrize(("tensor", "edit"), FAULTS, ids=[f"{edit.__name__} of {name}" for name, edit in FAULTS])
def test_a_planted_fault_is_beyond(
    small_bundle: Path, oracle: PytorchBackend, tmp_path: Path, tensor: str, edit: Callable[[Any], None]
) -> None:
    faulty = with_weight_edited(small_bundle, tmp_path / "faulty", tensor, edit)
    found = rows(faulty, oracle)
    assert any(row.excess.startswith("above 0.0001") or row.excess.startswith("below") for row in found)
