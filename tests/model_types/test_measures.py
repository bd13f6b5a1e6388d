"""What measures a bundle, on one without DeepStack: parity's encoder side, layers, dumps, wire forms, a basis."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.packing import PACKINGS
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from tests.support.model_types.tiny_checkpoint import tiny_checkpoint
from tests.support.paths import ROOT
from tests.support.run_cli import run_here


def test_dump_and_parity_of_a_dump(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    bundle, model, dump = bundle_of("qwen3_5"), tiny_checkpoint("qwen3_5"), tmp_path / "dump"
    assert run_here("dump", "--bundle", bundle, "--layers", "--out", dump).returncode == 0
    found = run_here("parity", "--dump", dump, "--bundle", bundle, "--model", model, "--json")
    assert found.returncode == 0, found.stderr + found.stdout
    report = json.loads(found.stdout)
    text = json.dumps(report)
    assert '"embeds"' in text
    assert "deepstack.0" not in text


def test_bisect_names_layers(bundle_of: Callable[[str], Path]) -> None:
    found = run_here(
        "parity",
        "--bundle",
        bundle_of("qwen3_5"),
        "--model",
        tiny_checkpoint("qwen3_5"),
        "--precision",
        "fp32",
        "--bisect",
    )
    assert found.returncode == 0, found.stderr
    assert "no layer parts" in found.stdout


@pytest.mark.parametrize("wire", sorted(PACKINGS))
def test_every_packing_without_levels(wire: str, bundle_of: Callable[[str], Path]) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": str(ROOT / "reference/samples/colour.png")}]}]
    with open_edge(bundle_of("qwen3_5"), EdgeOptions(wire_dtype=wire)) as edge:
        request = edge.encode(messages).request
    received = decode_request(bytes(encode_request(request)))
    (sent,), (item,) = request.media, received.media
    assert sent.packed is not None
    assert len(sent.packed) == 1
    assert item.deepstack == ()
    assert item.embeds.shape == (item.grid.tokens(2), 64)


def test_a_basis_of_one_tensor(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_of("qwen3_5"), tmp_path / "bundle"))
    data = Path(
        shutil.copytree(ROOT / "reference/samples", tmp_path / "data", ignore=shutil.ignore_patterns("*.jsonl"))
    )
    found = run_here("fit-basis", folder, "--data", data, "--rank", "32", "--json")
    assert found.returncode == 0, found.stderr
    with open_edge(folder, EdgeOptions(wire_dtype="basis-int8")) as edge:
        messages = [{"role": "user", "content": [{"type": "image", "image": str(data / "colour.png")}]}]
        (item,) = edge.encode(messages).request.media
    assert item.packed is not None
    assert len(item.packed) == 1
    assert len(open_bundle(folder).manifest.vision.output_names) == 1
