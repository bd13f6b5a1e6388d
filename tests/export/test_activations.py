"""Every activation that export writes computes what transformers' entry of that name computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.edge_runtime.backends.straight.activations import activation as straight_activation
from qwen3vl_edge.edge_runtime.backends.straight.capture import CpuDevice, TowerRunner
from qwen3vl_edge.edge_runtime.backends.straight.tower import StraightTower
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.onnx.activations import ACTIVATIONS, activation
from qwen3vl_edge.export.onnx.emitter import GraphEmitter
from qwen3vl_edge.tools.dev.random_checkpoint import encoder_checkpoint
from tests.support.encoders.export_models import (
    assert_close,
    graph_of,
    picture,
    processor_pixels,
    run_encoder,
    run_graph,
)

CPU = torch.device("cpu")
NOT_OFFERED = {"laplace", "sqrtsoftplus", "prelu", "xielu"}


def test_the_rest_of_the_table_is_known() -> None:
    assert set(ACT2CLS) - NOT_OFFERED == set(ACTIVATIONS)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_function_of_that_name(kind: str) -> None:
    emit = GraphEmitter({}, "")
    activation(emit, "x", "y", kind)
    model = emit.model(kind, [TensorSpec("x", "float32", (4001,))], [TensorSpec("y", "float32", (4001,))])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    (y,) = session.run(None, {"x": x})
    expected = ACT2FN[kind](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(straight_activation(kind)(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "gelu_fast", "quick_gelu", "silu", "relu"])
def test_towers(kind: str, tmp_path: Path) -> None:
    """The whole tower against PyTorch's; export itself compares with it in the same limits before it writes."""
    checkpoint = encoder_checkpoint(tmp_path / "model", hidden_act=kind, depth=2, deepstack_visual_indexes=[1, 0])
    export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="64x96", dynamic=False, image_uint8=False)
    bundle, grid = open_bundle(tmp_path / "b"), Grid(1, 4, 6)
    values = processor_pixels(checkpoint.path, picture(64, 96))
    outputs = run_graph(bundle, graph_of(bundle, "fixed", grid, "fp32"), {"pixel_values": values})
    expected = run_encoder(checkpoint.encoder, grid, values)
    assert_close(outputs, expected, 1e-4)
    tower = StraightTower(bundle.manifest.vision, checkpoint.encoder.state_dict().items(), torch.float32, CPU)
    assert_close(TowerRunner(tower, CpuDevice(), []).run(grid, values), expected, 1e-5)
