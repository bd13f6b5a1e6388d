"""The default limits of fp32 notice what a cosine does not: one altered row, one bias, a hundredth of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.golden import Golden, GoldenLimit
from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.parity.encoder import EncoderRow
from qwen3vl_edge.tools.parity.gate import default_gate
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.pictures import draw_picture
from tests.support.encoders.compared import compare_encoders
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


def test_export_calibration_self_test_and_parity_have_one_rule() -> None:
    """NaN is never accepted, and a backend that is coarser by name is judged as such by each of them."""
    for name, item in PRECISIONS.items():
        limits, nan = limits_of(name), float("nan")
        assert (limits.min_cosine, limits.max_relative_l2) == (item.min_cosine, item.max_relative_l2)
        assert item.accepts(item.min_cosine, item.max_relative_l2)
        assert not any(item.accepts(*pair) for pair in ((nan, 0.0), (1.0, nan), (item.min_cosine - 1e-6, 0.0)))
        coarse = limits_of(name, "openvino-bf16")
        assert (coarse.min_cosine, coarse.max_relative_l2) == (0.99, 1.4e-1)
        spec = tuple(TensorSpec(output, "float32", (4, 8)) for output in ("embeds", "deepstack.0"))
        graph = GraphRecord("fixed", "1x4x4", f"{name}/1x4x4.onnx", (), spec)
        for backend, expected in (("onnxruntime", limits), ("openvino-bf16", coarse)):
            found = set(Golden({}, {}).limits(name, graph, backend))
            assert found == {GoldenLimit(expected.min_cosine, expected.max_relative_l2)}
    assert default_gate("fp32", "fp32", "openvino-bf16").encoder.min_cosine == 0.99


def rows(bundle: Path, oracle: PytorchBackend) -> list[EncoderRow]:
    options = EdgeOptions(wire_dtype="fp32", backend_options=BackendOptions(precision="fp32", self_test=False))
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
