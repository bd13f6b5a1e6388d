"""Once per release: whole towers with and without DeepStack by the real builder, every bucket, both precisions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.machine.tensorrt_library import installed
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.tensorrt.build_engines import build_engines, kernel_rows
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
from qwen3vl_edge.tools.dev.bench.engines import forget_engines
from qwen3vl_edge.tools.dev.random_checkpoint import PLAIN_TOWERS, TOWERS, encoder_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed("tensorrt_rtx"), reason="needs tensorrt_rtx: Linux or Windows on x86-64"),
]


@pytest.mark.parametrize(
    "tower",
    [*TOWERS.values(), {"model_type": "qwen3_5"} | PLAIN_TOWERS["768"]],
    ids=[*TOWERS, "768 without DeepStack"],
)
def test_a_full_size_tower_is_built_for_every_level(tower: dict[str, Any], tmp_path: Path) -> None:
    encoder_checkpoint(tmp_path / "model", **tower)
    bundle = tmp_path / "bundle"
    export_bundle(
        str(tmp_path / "model"),
        bundle,
        image_buckets="224x224,448x448",
        video_buckets="8x224x224",
        precisions=("fp32", "fp16"),
        image_uint8=False,
    )
    shutil.rmtree(tmp_path / "model")
    for target in ("desktop-ampere", "desktop-ada", "desktop-blackwell", "desktop-rtx", "rtx-portable"):
        for precision in ("fp32", "fp16"):
            record = build_engines(bundle, BuildRequest(target, precision=precision, report=True)).record
            for row in kernel_rows(bundle, record) if precision == "fp16" else []:
                assert row["fused_attention"] == row["blocks"] == tower["depth"], row
                assert row["most_a_block"] <= 8, row
            (plan,) = record.plans
            manifest = open_bundle(bundle, verify=False).manifest
            graph = next(item for item in manifest.precision(precision).graphs if item.path == plan.graph)
            assert (plan.inputs, plan.outputs) == (graph.inputs, graph.outputs)
            assert plan.buckets == ("1x14x14", "1x28x28", "4x14x14")
            weights = manifest.file(f"{precision}/weights.bin").bytes
            assert weights < manifest.file(plan.path).bytes < 1.1 * weights
            forget_engines(bundle)
