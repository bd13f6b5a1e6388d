"""A planted fault in one layer is found and named, and a bundle without one is left in peace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle
from qwen3vl_edge.contract.bundle.open import sha256_of
from qwen3vl_edge.tools.dev.train_reference.make_calibration_data import make_calibration_data
from qwen3vl_edge.tools.parity.pictures import draw_picture
from tests.support.encoders.faulty_bundle import with_node_changed, with_weight_changed
from tests.support.run_cli import run_here

WEIGHTS = [
    ("patch_embed.proj.weight", "patch_embed.proj"),
    ("blocks.0.norm1.weight", "blocks.0.norm1"),
    ("blocks.3.attn.qkv.weight", "blocks.3.attn.qkv"),
    ("blocks.3.attn.proj.bias", "blocks.3.attn.proj"),
    ("blocks.4.mlp.linear_fc1.weight", "blocks.4.mlp.linear_fc1"),
    ("blocks.5.mlp.linear_fc2.bias", "blocks.5.mlp.linear_fc2"),
    ("deepstack_merger_list.1.linear_fc1.weight", "deepstack_merger_list.1.linear_fc1"),
    ("merger.norm.bias", "merger.norm"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_picture(0).save(folder / "one.png")
    return folder


def bisect(bundle: Path, reference: Path, pictures: Path, *more: object) -> tuple[int, dict]:  # type: ignore[type-arg]
    done = run_here(
        "parity", "--bisect", "--bundle", bundle, "--model", reference, "--images", pictures, "--json",
        *(() if "--precision" in more else ("--precision", "fp32")), *more,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_bundle_without_a_fault(small_bundle: Path, reference: Path, pictures: Path) -> None:
    before = {file: sha256_of(file) for file in small_bundle.rglob("*") if file.is_file()}
    code, found = bisect(small_bundle, reference, pictures)
    assert (code, found["first_layer"]) == (0, None)
    graphs = [("1x8x8", "fixed"), ("1x8x8", "image_uint8"), ("4x6x8", "fixed")]  # one picture at each
    assert [(case["bucket"], case["graph"]) for case in found["cases"]] == graphs
    after = {file: sha256_of(file) for file in small_bundle.rglob("*") if file.is_file()}
    assert after == before  # intermediate outputs are added to a copy


@pytest.mark.parametrize(("tensor", "layer"), WEIGHTS, ids=[tensor for tensor, _ in WEIGHTS])
def test_one_altered_weight_names_its_layer(
    small_bundle: Path, reference: Path, pictures: Path, tmp_path: Path, tensor: str, layer: str
) -> None:
    index = (3,) if tensor.endswith("bias") or ".norm" in tensor else (3, 5)
    faulty = with_weight_changed(small_bundle, tmp_path / "faulty", tensor, index, 4.0)
    code, found = bisect(faulty, reference, pictures)
    assert (code, found["first_layer"]) == (1, layer)
    if not tensor.endswith("qkv.weight"):
        assert found["first"]["first"]["channel"] == 3  # the row of the weight that was altered


def test_a_wrong_op_is_named_from_bundle_to_bundle(
    small_bundle: Path, reference: Path, pictures: Path, tmp_path: Path
) -> None:
    """Between two graphs the search goes deeper than between a graph and PyTorch."""

    def wrong_axis(node: onnx.NodeProto) -> None:
        node.attribute[0].i = -2

    faulty = with_node_changed(
        small_bundle, tmp_path / "faulty", "fp32/1x8x8.onnx", "blocks.2.attn.softmax", wrong_axis
    )
    code, found = bisect(faulty, reference, pictures, "--against", small_bundle)
    assert (code, found["first_layer"]) == (1, "blocks.2.attn.softmax")
    assert [case["first_layer"] for case in found["cases"]] == [
        "blocks.2.attn.softmax",
        None,
        None,
    ]  # the other graphs are whole
    code, found = bisect(faulty, reference, pictures)
    assert (code, found["first_layer"]) == (1, "blocks.2.attn.flat")
    done = run_here(
        "parity", "--bisect", "--bundle", faulty, "--model", reference, "--images", pictures, "--precision", "fp32"
    )
    assert "first layer that parts by more than 0.0001: blocks.2.attn.flat" in done.stdout
    assert "rotary, scores, softmax and mix" in done.stdout


def test_swapped_outputs_are_named_where_every_layer_is_right(
    small_bundle: Path, reference: Path, pictures: Path, tmp_path: Path
) -> None:
    def takes(level: int) -> Callable[[onnx.NodeProto], None]:
        def change(node: onnx.NodeProto) -> None:
            node.input[0] = f"deepstack_merger_list.{level}.linear_fc2"

        return change

    graph = "fp32/1x8x8.onnx"
    once = with_node_changed(small_bundle, tmp_path / "once", graph, "deepstack.0", takes(1))
    swapped = with_node_changed(once, tmp_path / "swapped", graph, "deepstack.1", takes(0))
    code, found = bisect(swapped, reference, pictures)
    assert (code, found["first_layer"]) == (1, "deepstack.0")
    assert [case["first_layer"] for case in found["cases"]] == ["deepstack.0", None, None]
    assert bisect(swapped, reference, pictures, "--against", small_bundle)[0] == 1


def test_precisions_part_where_the_tolerance_says(small_bundle: Path, reference: Path, pictures: Path) -> None:
    other = ("--against-precision", "fp16")
    assert bisect(small_bundle, reference, pictures, *other)[1]["first_layer"] is None  # fp16's own tolerance
    code, found = bisect(small_bundle, reference, pictures, *other, "--tolerance", "1e-5")
    assert code == 1
    assert found["first_layer"] == "patch_embed.proj"  # fp16 rounds the very first product


def test_a_smoothed_set_is_compared_where_it_means_the_same(
    small_bundle: Path, reference: Path, pictures: Path, tmp_path: Path
) -> None:
    """SmoothQuant rescales norms and values: they differ from PyTorch's without being wrong."""
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "quantized"))
    data = make_calibration_data(tmp_path / "data", 16)
    calibrate_bundle(bundle, CalibrationRequest("int8", data, samples=16, rest="fp32", auto_exclude=0.0))
    arguments = ("--precision", "int8", "--tolerance", "0.2")
    assert bisect(bundle, reference, pictures, *arguments)[1]["first_layer"] is None
    faulty = with_weight_changed(
        bundle, tmp_path / "faulty", "blocks.4.mlp.linear_fc2.bias", (9,), 200.0, precision="int8"
    )
    code, found = bisect(faulty, reference, pictures, *arguments)
    assert (code, found["first_layer"]) == (1, "blocks.4.mlp.linear_fc2")
    assert found["first"]["first"]["channel"] == 9
    compared = {gap["layer"] for gap in found["first"]["gaps"]}
    assert {"blocks.4.mlp.linear_fc1", "blocks.4.mlp.act"} <= compared
    assert not compared & {"blocks.4.norm1", "blocks.4.norm2", "blocks.4.attn.qkv", "blocks.4.attn.flat"}


def test_what_cannot_be_bisected(small_bundle: Path, reference: Path, tmp_path: Path) -> None:
    arguments = ("parity", "--bisect", "--bundle", small_bundle, "--model", reference)
    done = run_here(*arguments, "--report", tmp_path / "page.html")
    assert done.returncode == 2
    assert "--bisect cannot be combined with --report" in done.stderr
    assert list(tmp_path.iterdir()) == []
