"""TensorRT-RTX builds a tower without DeepStack: one output, for every bucket."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.machine.tensorrt_library import installed
from qwen3vl_edge.export.tensorrt.build_engines import build_engines
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest

pytestmark = pytest.mark.skipif(not installed("tensorrt_rtx"), reason="needs tensorrt_rtx: Linux or Windows on x86-64")


def test_a_tower_without_deepstack_is_built(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_of("qwen3_5"), tmp_path / "bundle"))
    result = build_engines(folder, BuildRequest("desktop-ada", precision="fp32"))
    assert not result.skipped
    bundle = open_bundle(folder)
    assert bundle.manifest.vision.output_names == ("embeds",)
    served = {bucket for plan in result.record.plans for bucket in plan.buckets}
    assert served == {str(grid) for grid in bundle.manifest.buckets("fp32")}
    for plan in result.record.plans:
        assert [spec.name for spec in plan.outputs] == ["embeds"]
        assert b"deepstack" not in (folder / plan.path).read_bytes()
