"""The manifest: round trip, and each way it can be wrong named with the key at fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.contract.bundle.manifest import (
    FileRecord,
    GraphRecord,
    Manifest,
    ModelIdentity,
    PrecisionSet,
    Preprocessing,
    VisionSpec,
    parse_manifest,
)
from qwen3vl_edge.contract.bundle.measurements import OutputParity
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.contract.errors import BundleError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.pixels.policy import qwen_vl_utils_policy

VISION = VisionSpec(16, 2, 2, 3, 64, 96, 4, 4, 64, 144, (0, 1), "gelu_pytorch_tanh")
OUTPUTS = tuple(TensorSpec(name, "float32", (4, 64)) for name in VISION.output_names)
GRAPH = GraphRecord(
    "fixed", "1x4x4", "fp32/g.onnx", (TensorSpec("pixel_values", "float32", (16, 1536)),), OUTPUTS,
    (OutputParity("embeds", 1.0, 1e-6, 1e-7),),
)  # fmt: skip
MANIFEST = Manifest(
    model=ModelIdentity("tiny", "qwen3_vl", "ab" * 32),
    vision=VISION,
    preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, 1 / 255),
    precisions=(PrecisionSet("fp32", "fp32/w.bin", (GRAPH,)),),
    processor=("processor/config.json",),
    files=tuple(FileRecord(path, 1, "00" * 32) for path in ("fp32/g.onnx", "fp32/w.bin", "processor/config.json")),
    tools={"torch": "2.15.0"},
    pixels=qwen_vl_utils_policy(32),
)


def test_round_trip() -> None:
    assert parse_manifest(MANIFEST.to_json()) == MANIFEST


def edited(edit: Callable[[dict[str, Any]], Any]) -> str:
    document = json.loads(MANIFEST.to_json())
    edit(document)
    return json.dumps(document)


CASES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("schema", lambda d: d.update(schema_version=99), "schema"),
    ("unknown key", lambda d: d.update(surprise=1), "unknown key"),
    ("missing key", lambda d: d.pop("vision"), "lacks"),
    ("nested missing", lambda d: d["vision"].pop("depth"), "lacks"),
    ("wrong type", lambda d: d["vision"].update(depth="four"), "wrong type"),
    ("bool for int", lambda d: d["vision"].update(depth=True), "wrong type"),
    ("list for object", lambda d: d.update(model=[]), "wrong type"),
    ("no precisions", lambda d: d.update(precisions=[]), "precisions"),
    ("unknown precision", lambda d: d["precisions"][0].update(precision="int3"), "precisions"),
    ("unrecorded file", lambda d: d["files"].pop(0), "does not record"),
    ("escape", lambda d: d["files"].append({"path": "../x", "bytes": 1, "sha256": ""}), "outside"),
    ("absolute", lambda d: d["files"].append({"path": "/etc/x", "bytes": 1, "sha256": ""}), "outside"),
    ("bad kind", lambda d: d["precisions"][0]["graphs"][0].update(kind="round"), "kind"),
    ("bad bucket", lambda d: d["precisions"][0]["graphs"][0].update(bucket="8by8"), "grid"),
    ("no policy", lambda d: d["pixels"].update(name="any"), "invalid pixel policy"),
    ("bounds", lambda d: d["pixels"]["video"].update(bounds="some"), "invalid pixel policy"),
    ("another factor", lambda d: d["pixels"].update(factor=28), "invalid pixel policy"),
    ("no pixels", lambda d: d["pixels"]["image"].update(max_pixels=0), "invalid pixel policy"),
    ("pixels as text", lambda d: d["pixels"]["image"].update(max_pixels="9"), "wrong type"),
    ("outputs", lambda d: d["precisions"][0]["graphs"][0]["outputs"].pop(), "outputs"),
]


@pytest.mark.parametrize(("edit", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_faults_are_named(edit: Callable[[dict[str, Any]], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_manifest(edited(edit))


def test_not_json() -> None:
    with pytest.raises(BundleError, match="not JSON"):
        parse_manifest("{")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(tmp_path / "manifest.json" / "x")


def test_atomic_folder_leaves_nothing_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "bundle"

    def fail() -> None:
        with atomic.new_folder(target) as staging:
            (staging / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with atomic.new_folder(target) as staging:
        (staging / "one").write_text("x")
    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in target.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_file_leaves_the_old_one_on_failure(tmp_path: Path) -> None:
    file = tmp_path / "a"
    atomic.write_bytes(file, b"old")
    with pytest.raises(TypeError):
        atomic.write_bytes(file, "text")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_link_leads_to_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    folder, file, other = tmp_path / "folder", tmp_path / "file", tmp_path / "other"
    links = [tmp_path / "links" / name for name in ("folder", "file", "other")]
    links[0].parent.mkdir()
    for link, target in zip(links, (folder, file, other), strict=True):
        link.symlink_to(target)
    for content in ("first", "second"):  # what they lead to is made, then replaced
        with atomic.new_folder(links[0]) as staging:
            (staging / "one").write_text(content)
        atomic.write_bytes(links[1], content.encode())
        with atomic.new_file(links[2]) as staging:
            staging.write_text(content)
        assert [path.read_text() for path in (folder / "one", file, other)] == [content] * 3
        assert all(link.is_symlink() for link in links)
    assert sorted(tmp_path.iterdir()) == sorted((folder, file, other, links[0].parent))
