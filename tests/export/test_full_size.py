"""What an export of a whole 2B-size encoder costs: bytes and memory are held to limits, seconds are printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3vl_edge.tools.dev.random_checkpoint import TOWERS, encoder_checkpoint
from tests.support.paths import ROOT

BUCKETS = "224x224,256x256,224x320,320x224,256x384,448x448"
# The peak is VmHWM and not getrusage's maxrss, which on Linux a child inherits from the process that forks it.
EXPORT = """
import json, sys, time
from pathlib import Path
from qwen3vl_edge.export.bundle import export_bundle
started = time.perf_counter()
manifest = export_bundle(sys.argv[1], Path(sys.argv[2]), image_buckets=sys.argv[3], precisions=(sys.argv[4],))
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
rows = [row for item in manifest.precisions for graph in item.graphs for row in graph.parity]
print(json.dumps({"seconds": seconds, "peak": peak, "bytes": sum(file.bytes for file in manifest.files),
                  "cosine": min(row.cosine for row in rows), "relative_l2": max(row.relative_l2 for row in rows)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cost_of_a_2b_encoder(precision: str, tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path / "model", **TOWERS["2B"])
    values = sum(value.numel() for value in checkpoint.encoder.parameters())
    del checkpoint.__dict__["encoder"]
    command = [sys.executable, "-c", EXPORT, str(tmp_path / "model"), str(tmp_path / "bundle"), BUCKETS, precision]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    width = 4 if precision == "fp32" else 2
    size_ratio, peak_ratio = found["bytes"] / (values * width), found["peak"] / (values * 4)
    print(f"\n{precision}: {found['seconds']:.0f} s, size ratio {size_ratio:.4f}, peak ratio {peak_ratio:.2f}, {found}")
    assert size_ratio <= 1.02
    assert peak_ratio <= 3
