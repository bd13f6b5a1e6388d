"""The benches count rightly and run; what they time is not judged here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.dev.bench import engines as engines_bench
from qwen3vl_edge.tools.dev.bench import growth
from qwen3vl_edge.tools.dev.bench import wire as wire_bench
from qwen3vl_edge.tools.dev.bench.encoder import run as encoder_bench
from qwen3vl_edge.tools.dev.bench.encoder.peaks import check_machine, with_peaks
from qwen3vl_edge.tools.dev.bench.encoder.run import Plan
from qwen3vl_edge.tools.dev.bench.end_to_end.namespaces import why_not
from qwen3vl_edge.tools.dev.bench.report.page import page as benchmarks_page
from qwen3vl_edge.tools.dev.bench.roofline import encoder_cost
from tests.support.paths import ROOT

DOCS = ROOT / "docs" / "reports"


@pytest.mark.parametrize("grid", [Grid(1, 8, 8), Grid(1, 10, 8), Grid(4, 6, 6)])
def test_flops_are_those_that_torch_counts(bundle: Path, reference: Path, grid: Grid) -> None:
    encoder = load_torch_encoder(open_checkpoint(str(reference)))
    pixels = torch.zeros(grid.patches, 1536)
    # As matrix products: not every release of torch counts the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(pixels, grid_thw=torch.tensor([grid.as_list()]))
    cost = encoder_cost(open_bundle(bundle).manifest.vision, grid, 4)
    assert cost.flops == counter.get_total_flops()


def test_bytes_are_those_of_the_weights_file(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    cost = encoder_cost(manifest.vision, Grid(1, 8, 8), 4)
    stored = manifest.file("fp32/weights.bin").bytes
    assert (
        cost.weights <= stored < 1.2 * cost.weights
    )  # beside the matrices: biases, norms, the image's patch embedding
    assert cost.floor(1e12, 1e3) == (cost.weights + cost.bytes_in + cost.bytes_out) / 1e3
    assert cost.floor(1e3, 1e12) == cost.flops / 1e3


@pytest.mark.slow
def test_encoder_bench_runs_each_candidate_in_a_process_and_says_why_not(
    bundle: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "encoder.json"
    bucket = str(open_bundle(bundle).manifest.buckets()[0])
    named = (
        "=pytorch fp32",
        "pytorch bf16 flash",
        "=ours, onnxruntime cpu fp32",
        "=ours, onnxruntime cuda fp32",
        "=ours, onnxruntime fp32, dynamic graph",
    )
    plan = Plan(bundle, reference, 2, (1,), (bucket,), named, 0, 300.0)
    encoder_bench.run(plan, out)
    found = json.loads(out.read_text())
    rows = {row["candidate"]: row for row in found["rows"]}
    assert {"pytorch fp32", "ours, onnxruntime cpu fp32", "ours, onnxruntime fp32, dynamic graph"} <= set(rows)
    assert {row["bucket"] for row in rows.values()} == {bucket}
    assert all(row["median_seconds"] > 0 and row["floor_seconds"] > 0 for row in rows.values())
    assert all(row["load_seconds"] > 0 and row["peak_bytes"] > 10**7 for row in rows.values())
    assert all(row["cosine_to_baseline"] > 0.9999 for row in rows.values())
    assert rows["pytorch fp32"]["times_faster_than_baseline"] == 1
    assert found["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert not set(rows) & set(found["not_run"])
    if not torch.cuda.is_available():
        assert "cuda" in found["not_run"]["ours, onnxruntime cuda fp32"]

    peaks = {"1": {name: 4 * value for name, value in found["peaks"]["1"].items()}}
    peaks["1"]["bf16"] /= 8  # a peak that was measured higher before is kept
    again = with_peaks(found, peaks, open_bundle(bundle).manifest.vision)
    assert again["peaks"]["1"] == peaks["1"] | {"bf16": found["peaks"]["1"]["bf16"]}
    for row, before in zip(again["rows"], found["rows"], strict=True):
        assert row == before | {"floor_seconds": pytest.approx(before["floor_seconds"] / 4)}
    with pytest.raises(InputError, match="another machine"):
        check_machine(found["environment"] | {"cores": 1000})


def test_wire_bench_brings_the_same_values_by_every_way() -> None:
    rows = wire_bench.measure([1], 1, ("memcpy and send", "ours"))
    found = {row["name"]: row for row in rows}
    assert {"memcpy and send", "ours", "ours over HTTP", "daemon over HTTP"} <= set(found)
    assert found["memcpy and send"]["share"] == 1
    assert found["ours"]["share"] == found["ours over HTTP"]["share"] < 1.01
    assert all(row["median_ms"] > 0 for row in rows)


def test_growth_finds_the_exponent_that_is_there(tmp_path: Path) -> None:
    rows = [{"images": n, "name": "ours", "median_ms": 3.0 * n**1.25} for n in (1, 4, 16)]
    (tmp_path / "wire.json").write_text(json.dumps({"rows": rows}))
    (curve,) = growth.curves(tmp_path)
    assert curve.exponent == 1.25
    assert curve.within == 1
    growth.plot([curve], tmp_path / "images")
    assert "<svg" in (tmp_path / "images" / "growth.svg").read_text(encoding="utf-8")


@pytest.mark.skipif(why_not() is not None, reason=f"needs root on a Linux with /dev/net/tun: {why_not()}")
def test_an_emulated_link_brings_every_byte() -> None:
    """TCP over two interfaces in two namespaces; how long it takes is for the bench to say."""
    command = [sys.executable, "-m", "tests.support.link_probe"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["3000000", "same"], done.stderr


def test_the_page_of_benchmarks_is_what_the_json_says() -> None:
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == benchmarks_page(DOCS / "benchmarks")


def test_engine_bench_measures_a_build(few_buckets: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(few_buckets, tmp_path / "reference"))
    row = engines_bench.in_own_process(small, "desktop-ada", "fp16", "profiles")
    assert row["plans"] == 1
    assert row["bytes"] == sum(file.stat().st_size for file in small.rglob("*.plan"))
    assert row["peak_memory"] > row["bytes"]
    assert row["seconds"] > 0
