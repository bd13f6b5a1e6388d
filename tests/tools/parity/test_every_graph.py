"""A fault in any one graph of a bundle fails parity, and the search names its layer and the graph: a table of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.packing import PACKINGS
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.parity.layers.bisect import bisect
from qwen3vl_edge.tools.parity.layers.sources import layers_of
from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.pictures import draw_picture
from qwen3vl_edge.tools.parity.reference import KeptReference
from qwen3vl_edge.tools.parity.samples import edge_cases
from tests.support.encoders.compared import compare_encoders
from tests.support.encoders.faulty_bundle import damage_attention, permute_positions, swap_levels, with_graph_changed
from tests.support.run_cli import run_here

# A graph's file, and the labels of the rows that come from it.
GRAPHS = {
    "1x4x4.onnx": ["1x4x4"],
    "1x4x4.uint8.onnx": ["1x4x4 uint8"],
    "2x4x4.onnx": ["2x4x4"],
    "dynamic.onnx": ["1x4x6 dynamic", "2x4x6 dynamic"],
}
FAULTS: list[tuple[Callable[[Any], None], str]] = [
    (swap_levels, "deepstack.0"),
    (permute_positions, "pos_embed.flat"),
    (damage_attention, "blocks.2.attn.flat"),
]
PICTURES = {"one": draw_picture(0)}


@pytest.fixture(scope="module")
def every_kind(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a graph of each kind, in fp32 and fp16."""
    out = tmp_path_factory.mktemp("every-kind") / "bundle"
    export_bundle(str(reference), out, image_buckets="64x64", video_buckets="4x64x64", precisions=("fp32", "fp16"))
    return out


@pytest.fixture(scope="module")
def oracle(reference: Path) -> PytorchBackend:
    return PytorchBackend(open_checkpoint(str(reference)))


@pytest.fixture(scope="module")
def kept(oracle: PytorchBackend) -> KeptReference:
    return KeptReference(oracle)


def opened(bundle: Path, precision: str) -> Edge:
    return open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision, threads=1, self_test=False)))


def first_layers(edge: Edge, oracle: PytorchBackend, label: str) -> Iterator[str | None]:
    vision, precision, layers = edge.bundle.manifest.vision, edge.encoder.precision, layers_of(edge)
    assert layers is not None
    cases = [case for case in edge_cases(edge, PICTURES) if case.label == label]
    for found in bisect(
        precision, cases, vision, layers, TorchLayers(oracle, vision), limits_of(precision).layer_tolerance
    ):
        assert (found.label, found.precision) == (label, precision)
        yield None if found.first is None else found.first.layer


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_sound_bundle_passes_in_every_graph(
    every_kind: Path, oracle: PytorchBackend, kept: KeptReference, precision: str
) -> None:
    with opened(every_kind, precision) as edge:
        rows = compare_encoders(edge, kept, PICTURES)
        assert {row.label for row in rows} == {label for labels in GRAPHS.values() for label in labels}
        assert [row for row in rows if not row.passed] == []
        assert list(first_layers(edge, oracle, "1x4x4 uint8")) == [None]


@pytest.mark.parametrize("file", GRAPHS)
@pytest.mark.parametrize(("fault", "layer"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_in_one_graph_alone(
    every_kind: Path,
    oracle: PytorchBackend,
    kept: KeptReference,
    tmp_path: Path,
    file: str,
    fault: Callable[[Any], None],
    layer: str,
) -> None:
    faulty = with_graph_changed(every_kind, tmp_path / "faulty", f"fp32/{file}", fault)
    with opened(faulty, "fp32") as edge:
        rows = compare_encoders(edge, kept, PICTURES)
        assert {row.label for row in rows if not row.passed} == set(GRAPHS[file])
        for label in GRAPHS[file]:
            assert list(first_layers(edge, oracle, label)) == [layer]


def test_a_fault_in_another_set_fails_the_command(every_kind: Path, reference: Path, tmp_path: Path) -> None:
    """Without --precision every set is compared and searched."""
    (tmp_path / "pictures").mkdir()
    PICTURES["one"].save(tmp_path / "pictures" / "one.png")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}) + "\n")
    faulty = with_graph_changed(every_kind, tmp_path / "faulty", "fp16/1x4x4.uint8.onnx", swap_levels)
    arguments = ("parity", "--bundle", faulty, "--model", reference, "--images", tmp_path / "pictures")
    asked = ("--prompts", prompts, "--max-new-tokens", 1)
    done = run_here(*arguments, *asked, "--json", "--report", tmp_path / "page.html")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [item["precision"] for item in report["sets"]] == ["fp16"]
    failed = {row["what"] for row in report["gate"] if not row["passed"]}
    assert failed == {f"encoder fp16 1x4x4 image_uint8 deepstack.{level}" for level in (0, 1)}
    assert {row["form"] for row in report["wire"] if row["passed"]} == {"fp32", "fp16", *PACKINGS}
    page = (tmp_path / "page.html").read_text()
    assert "encoder fp16 1x4x4 image_uint8 deepstack.0" in page
    assert "<h3>Set fp16</h3>" in page
    assert "the bundle has no basis" in page
    found = run_here(*arguments, "--bisect")
    assert found.returncode == 1
    assert "graphs that part: fp16 1x4x4 uint8" in found.stdout
    assert "deepstack.0" in found.stdout.splitlines()[-1]


def test_the_reference_is_asked_once() -> None:
    class Counting:
        name, precision, runs = "counting", "fp32", 0

        def run(self, grid: Grid, pixel_values: Any) -> Any:
            from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings

            self.runs += 1
            return Embeddings(np.full((4, 2), pixel_values[0, 0], np.float32), ())

    inner: Any = Counting()
    kept = KeptReference(inner, kept_bytes=40)  # room for one output
    one, other = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    for _ in range(2):
        assert kept.run(Grid(1, 2, 2), one).embeds[0, 0] == 0
        assert kept.run(Grid(1, 2, 2), other).embeds[0, 0] == 1
    assert inner.runs == 3  # what there is no room for is asked again
