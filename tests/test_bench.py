"""The benches count rightly and run; what they time is not judged here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from contract.bundle import open_bundle
from contract.checkpoint import open_checkpoint
from contract.grid import Grid
from edge_runtime.backends.pytorch import load_encoder
from tools.bench import encoder as encoder_bench
from tools.bench import engines as engines_bench
from tools.bench import report
from tools.bench.roofline import encoder_cost

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("grid", [Grid(1, 8, 8), Grid(1, 10, 8), Grid(4, 6, 6)])
def test_flops_are_those_that_torch_counts(bundle: Path, reference: Path, grid: Grid) -> None:
    encoder = load_encoder(open_checkpoint(str(reference)))
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


def test_encoder_bench_lists_what_ran_and_why_the_rest_did_not(bundle: Path, reference: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(bundle, tmp_path / "reference"))
    out = tmp_path / "encoder.json"
    encoder_bench.run(small, reference, rounds=1, threads=0, out=out)
    found = json.loads(out.read_text())
    ran = {row["candidate"] for row in found["rows"]}
    assert {"pytorch fp32", "pytorch bf16", "onnxruntime cpu fp32", "onnxruntime cpu fp16"} <= ran
    assert {row["bucket"] for row in found["rows"]} == {str(grid) for grid in open_bundle(small).manifest.buckets()}
    assert all(row["median_seconds"] > 0 and row["floor_seconds"] > 0 for row in found["rows"])
    assert found["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert not ran & set(found["not_run"])
    assert all(found["not_run"].values())


def test_the_page_of_benchmarks_is_what_the_json_says() -> None:
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == report.page(DOCS / "benchmarks")


def test_engine_bench_measures_a_build(bundle: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(bundle, tmp_path / "reference"))
    row = engines_bench.in_own_process(small, "desktop-ada", "fp16", "profiles")
    assert row["plans"] == 1
    assert row["bytes"] == sum(file.stat().st_size for file in small.rglob("*.plan"))
    assert row["peak_memory"] > row["bytes"]
    assert row["seconds"] > 0
