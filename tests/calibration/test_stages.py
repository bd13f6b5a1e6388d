"""The encoder cut into stages gives transformers' outputs, by their names."""

from __future__ import annotations

from pathlib import Path

from qwen3vl_edge.calibration.quantized_weights import source_weights
from qwen3vl_edge.calibration.stage_runner import StageRunner
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import encoder_checkpoint
from tests.support.encoders.export_models import assert_close, picture, processor_pixels, run_encoder


def test_levels_out_of_order(tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model", depth=3, deepstack_visual_indexes=[2, 0, 1], hidden_act="silu")
    export_bundle(str(checkpoint.path), tmp_path / "b", image_buckets="64x96", dynamic=False, image_uint8=False)
    bundle, grid = open_bundle(tmp_path / "b"), Grid(1, 4, 6)
    values = processor_pixels(checkpoint.path, picture(64, 96))
    spec, base = bundle.manifest.vision, bundle.manifest.precision("fp32")
    with StageRunner(spec, source_weights(bundle, base), "fp32") as runner:
        outputs = runner.run(EncoderInput(grid, values)).outputs
    expected = run_encoder(checkpoint.encoder, grid, values)
    assert_close([outputs[name] for name in spec.output_names], expected, 1e-4)
