"""The way a device builds: `tensorrt`, for its own GPU. TensorRT-RTX stands in for the library, so nothing here says
what TensorRT itself would do; what is tested is which library, options, checks and record the builder takes there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# polygraphy stands on one library per process, so each build has its own.
BUILD = """
import json, sys
import tensorrt_rtx
sys.modules["tensorrt"] = tensorrt_rtx
from dataclasses import asdict
from pathlib import Path
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.machine.gpu import Gpu
from qwen3vl_edge.export.tensorrt import build_job
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
from qwen3vl_edge.export.tensorrt.build_engines import build_engines
bundle, capability, options = sys.argv[1:]
build_job.find_gpu = lambda: Gpu("stand-in", capability, 8 << 30, "12.6")
for request in json.loads(options):
    try:
        result = build_engines(Path(bundle), BuildRequest(**request))
        print(json.dumps(asdict(result.record) | {"skipped": result.skipped}))
    except ContractError as error:
        print(json.dumps({"error": str(error)}))
"""


def build_there(bundle: Path, capability: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Build on a machine that has `tensorrt` and a GPU of that compute capability."""
    command = [sys.executable, "-c", BUILD, str(bundle), capability, json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_jetson_builds_with_tensorrt_for_itself(fresh: Path) -> None:
    orin = {"target": "jetson-orin"}
    first, again, fp32 = build_there(fresh, "8.7", orin, orin, orin | {"precision": "fp32", "layout": "per-bucket"})
    assert (first["library"], first["compute_capabilities"], first["precision"]) == ("tensorrt", ["8.7"], "fp16")
    assert not first["skipped"]
    assert again["skipped"]
    assert (fp32["layout"], len(fp32["plans"])) == ("per-bucket", 4)
    assert all((fresh / plan["path"]).exists() for plan in (*first["plans"], *fp32["plans"]))


def test_this_gpu_prefers_tensorrt_and_records_the_gpu(fresh: Path) -> None:
    (record,) = build_there(fresh, "9.0", {"target": "this-gpu", "strip_weights": False})
    assert (record["target"], record["library"]) == ("this-gpu", "tensorrt")
    assert record["compute_capabilities"] == ["9.0"]


def test_another_gpu_than_the_target_s_is_refused(fresh: Path) -> None:
    (found,) = build_there(fresh, "8.9", {"target": "jetson-orin", "workspace": 1 << 29})
    assert "here is stand-in (compute capability 8.9, 8 GiB)" in found["error"]
    assert f"qwen3vl-edge build {fresh.name} --target jetson-orin --workspace {1 << 29}" in found["error"]
