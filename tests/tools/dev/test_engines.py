"""The search over random towers: a few of them are right on every backend, and known faults are found."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from qwen3vl_edge.tools.dev.engines.towers import draw_tower
from tests.support.encoders.engine_search import search_in_a_process

FEW = ("2", "15")  # among them graphs in fp16, as many patches as heads, and a narrow MLP
# As many heads as its picture has patches, and wide enough that OpenVINO does not crash on its MLP.
WIDE = {
    "hidden_size": 320,
    "intermediate_size": 320,
    "num_heads": 8,
    "depth": 1,
    "deepstack_visual_indexes": [],
    "spatial_merge_size": 2,
    "patch_size": 8,
    "temporal_patch_size": 2,
    "num_position_embeddings": 36,
    "hidden_act": "gelu_pytorch_tanh",
    "out_hidden_size": 88,
}


def search_one(mode: str, **vision: int) -> dict[str, Any]:
    return search_in_a_process(mode, json.dumps(WIDE | vision))


def test_towers_cover_what_the_search_is_about() -> None:
    towers = [draw_tower(1, index) for index in range(300)]
    assert {tower.vision["num_heads"] for tower in towers} == set(range(1, 17))
    widths = {tower.vision["hidden_size"] // tower.vision["num_heads"] for tower in towers}
    assert (min(widths), max(widths)) == (12, 128)
    assert {tower.vision["spatial_merge_size"] for tower in towers} == {2, 3}
    assert all(tower.fixed[0].patches == tower.vision["spatial_merge_size"] ** 2 for tower in towers)
    as_many = [any(grid.patches_per_frame == tower.vision["num_heads"] for grid in tower.fixed) for tower in towers]
    assert sum(as_many) > 30
    assert draw_tower(1, 7) == draw_tower(1, 7) != draw_tower(2, 7)


@pytest.mark.slow  # the one tower of the next test is every time
def test_a_few_towers_are_right_on_every_backend() -> None:
    found = search_in_a_process("mended", *FEW)
    assert found["findings"] == []
    assert {(item["backend"], item["kind"]) for item in found["runs"]} >= {
        (backend, kind) for backend in ("onnxruntime", "openvino") for kind in ("fixed", "dynamic", "uint8")
    }


def test_a_wrong_backend_is_found() -> None:
    found = search_one("unmended")
    (finding,) = found["findings"]
    assert {(item["backend"], item["kind"]) for item in finding["runs"]} == {
        ("openvino", "fixed"),
        ("openvino", "uint8"),
    }
    assert len(found["runs"]) > len(finding["runs"])  # ONNX Runtime and the dynamic graph are right
    assert finding["stopped"] == ""
    assert search_one("mended")["findings"] == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": 64, "intermediate_size": 64}, f"the process ended with {-signal.SIGSEGV}"),
        pytest.param(
            {"num_position_embeddings": 37},
            "vision_config.num_position_embeddings is not supported",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["crash", "error"],
)
def test_what_stops_a_tower_is_a_finding(change: dict[str, int], why: str) -> None:
    (finding,) = search_one("unmended", **change)["findings"]
    assert why in finding["stopped"]
