"""The kernels of plans, as the real builder lists them without a GPU: one fused attention and at most eight a block."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.machine.tensorrt_library import installed
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.tensorrt.build_engines import build_engines, kernel_rows
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
from qwen3vl_edge.export.tensorrt.build_plan import PlanSettings, build_plan
from qwen3vl_edge.export.tensorrt.kernels import KernelReport, kernels_of_inspector, kernels_of_log, read_kernels
from qwen3vl_edge.export.tensorrt.network import parse_graph
from qwen3vl_edge.export.tensorrt.targets import TARGETS
from qwen3vl_edge.tools.dev.random_checkpoint import TINY_VISION, encoder_checkpoint

DEPTH, HEADS = 2, 4
needs_builder = pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="needs tensorrt_rtx: Linux or Windows on x86-64"
)
slow = pytest.mark.slow  # the rest of a table of which each width and each GPU is built every time


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles by head width: those of the released towers, whose fusions these show at the least size."""
    return {width: _export(tmp_path_factory.mktemp(f"width{width}"), width) for width in (64, 72)}


def _export(folder: Path, width: int) -> Path:
    hidden = width * HEADS
    tower = TINY_VISION | {
        "depth": DEPTH,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_heads": HEADS,
        "deepstack_visual_indexes": [0],
    }
    model = encoder_checkpoint(folder / "model", **tower).path
    export_bundle(str(model), folder / "bundle", image_buckets="128x128", video_buckets="8x64x64", precisions=("fp16",))
    return folder / "bundle"


@needs_builder
@pytest.mark.parametrize(
    ("width", "target"),
    [
        (64, "desktop-ada"),
        (72, "desktop-ampere"),
        (72, "desktop-blackwell"),
        pytest.param(64, "desktop-ampere", marks=slow),
        pytest.param(64, "desktop-blackwell", marks=slow),
        pytest.param(72, "desktop-ada", marks=slow),
    ],
)
def test_each_block_has_one_fused_attention_and_eight_kernels(towers: dict[int, Path], width: int, target: str) -> None:
    path = towers[width]
    rows: list[dict[str, Any]] = []
    for layout in ("per-bucket", "profiles"):
        record = build_engines(path, BuildRequest(target, layout=layout, report=True)).record
        rows += kernel_rows(path, record)
    assert [row["bucket"] for row in rows] == ["1x8x8", "4x4x4"] * 2
    rows.append(_uint8_kernels(open_bundle(path), target))
    for row in rows:
        assert row["blocks"] == row["fused_attention"] == row["attention"] == DEPTH, row
        assert row["most_a_block"] <= 8, row
        assert row["softmax"] == 0, row
        # Four of each block, two of each merger, and that of the patches.
        assert row["product"] == 4 * DEPTH + 2 * 2 + 1, row


def _uint8_kernels(bundle: Bundle, target: str) -> dict[str, Any]:
    """Of the graph that takes pixels, of which `build` makes no plan."""
    graph = next(item for item in bundle.manifest.precision("fp16").graphs if item.kind == "image_uint8")
    parsed = parse_graph("tensorrt_rtx", bundle.graph_path(graph), graph)
    (capability,) = TARGETS[target].compute_capabilities
    major, minor = capability.split(".")
    settings = PlanSettings("tensorrt_rtx", ((int(major), int(minor)),), 1 << 30)
    build_plan(parsed, graph, [], settings, lambda what, done: None, threading.Event())
    (kernels,) = kernels_of_log(parsed.log.layers, [str(graph.bucket)])
    return kernels.summary()


@needs_builder
def test_a_report_is_recorded_and_builds_a_plan_again_only_to_be_had(towers: dict[int, Path]) -> None:
    path = towers[64]
    request = BuildRequest("rtx-portable", layout="per-bucket", buckets=(open_bundle(path).manifest.buckets()[0],))
    plain = build_engines(path, request)
    assert plain.record.plans[0].kernels is None
    assert kernel_rows(path, plain.record) == []
    with_report = BuildRequest(**vars(request) | {"report": True})
    reported = build_engines(path, with_report)
    assert not reported.skipped
    (plan,) = reported.record.plans
    assert plan.kernels in {file.path for file in open_bundle(path).manifest.files}
    assert all(build_engines(path, item).skipped for item in (request, with_report))
    (bucket,) = read_kernels(path / str(plan.kernels)).buckets
    block = [kernel.kind for kernel in bucket.of_blocks()["blocks.1"]]
    assert sorted(block) == ["attention", *["other"] * 3, *["product"] * 4]
    assert all(kernel.part for kernel in bucket.kernels)


LOG = """Layers:
Name: __myl_Cast_myl0_0, LayerType: kgen, Inputs: [ { Name: x }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a]
Name: blocks.0.attn.scores_myl0_1, LayerType: gemm, Inputs: [], Metadata: [ONNX Layer: blocks.0.attn.scores]
Name: __myl_MaxrSubExp_myl0_2, LayerType: kgen, Inputs: [], StreamId: 0, Metadata: [ONNX Layer: blocks.0.attn.softmax]
Name: wait_myl0_3, LayerType: wait, Inputs: [], Outputs: [], StreamId: 0, EventId: 2, Metadata:
Name: _gemm_mha_v2_myl1_0, LayerType: kgen, Inputs: [], StreamId: 0, Metadata: [ONNX Layer: blocks.0.attn.softmax]

I/O Tensors:
 Name: pixel_values, IOMode: Input, DataType: Float
"""


def test_lists_of_the_log_and_of_the_inspector() -> None:
    """Attention that is not fused is seen as such; a plan whose parts are no profiles is shown whole."""
    unfused, fused = kernels_of_log(LOG, ["1x2x2", "1x4x4"])
    assert [kernel.kind for kernel in unfused.kernels] == ["movement", "product", "softmax"]
    assert [kernel.part for kernel in unfused.kernels] == ["input", "blocks.0", "blocks.0"]
    assert (unfused.fused_blocks, fused.fused_blocks) == (0, 1)
    (whole,) = kernels_of_log(LOG, ["1x2x2"])
    assert (whole.bucket, len(whole.kernels)) == ("1x2x2", 4)
    rows = [{"Name": kernel.name, "LayerType": "kgen", "Metadata": ""} for kernel in whole.kernels]
    (inspected,) = kernels_of_inspector(json.dumps({"Layers": rows}), ["1x2x2"])
    assert [kernel.name for kernel in inspected.kernels] == [kernel.name for kernel in whole.kernels]
    assert kernels_of_log("Layers:\n", ["1x2x2"]) == ()
    assert KernelReport((whole,)).to_json().count("__myl_") == 2
