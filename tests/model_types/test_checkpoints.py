"""Spellings of a checkpoint that mean the same, and checkpoints whose config and weights contradict each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.open import open_bundle, open_model_of
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder
from qwen3vl_edge.contract.errors import CheckpointError, ModelMismatchError
from qwen3vl_edge.contract.model_types import MODEL_TYPES
from qwen3vl_edge.export.bundle import plan_export
from qwen3vl_edge.export.vision_config import read_vision_spec
from tests.support.model_types.tiny_checkpoint import tiny_checkpoint
from tests.support.run_cli import run_here

types = pytest.mark.parametrize("model_type", MODEL_TYPES)


def copy_of(model_type: str, folder: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint(model_type), folder / "model"))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "config.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def older_spelling(document: dict[str, Any]) -> None:
    """As transformers 4 wrote it, and as released checkpoints are: an own type for the tower is missing."""
    text, vision = document["text_config"], document["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "bfloat16"}
    document["torch_dtype"] = document.pop("dtype", "float32")
    vision["model_type"] = document["model_type"]
    vision["torch_dtype"] = "bfloat16"
    vision.setdefault("deepstack_visual_indexes", [])
    for name in ("rope_parameters", "in_channels", "patch_size", "spatial_merge_size", "temporal_patch_size"):
        vision.pop(name, None)


@types
def test_both_spellings_are_one_model(model_type: str, tmp_path: Path) -> None:
    folder = copy_of(model_type, tmp_path)
    edit_config(folder, older_spelling)
    older, newer = open_checkpoint(str(folder)), open_checkpoint(str(tiny_checkpoint(model_type)))
    assert AutoConfig.from_pretrained(folder).vision_config.rope_parameters["rope_theta"] == 10000.0
    assert older.model_hash == newer.model_hash
    assert read_vision_spec(older) == read_vision_spec(newer)


@types
def test_names_without_model_prefix(model_type: str, tmp_path: Path) -> None:
    folder = copy_of(model_type, tmp_path)
    file = folder / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(file).items()}, file)
    assert open_checkpoint(str(folder)).model_hash == open_checkpoint(str(tiny_checkpoint(model_type))).model_hash


def says_deepstack(folder: Path) -> None:
    edit_config(folder, lambda document: document["vision_config"].update(deepstack_visual_indexes=[0, 2]))


def says_none(folder: Path) -> None:
    edit_config(folder, lambda document: document["vision_config"].update(deepstack_visual_indexes=[]))


def not_layers(folder: Path) -> None:
    edit_config(folder, lambda document: document["vision_config"].update(deepstack_visual_indexes="0, 2"))


def has_a_merger(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    merger = {name: value for name, value in tensors.items() if name.startswith("model.visual.merger.")}
    added = {name.replace(".merger.", ".deepstack_merger_list.7."): value.clone() for name, value in merger.items()}
    save_file(tensors | added, file)


@pytest.mark.parametrize(
    ("model_type", "spoil", "words"),
    [
        ("qwen3_5", says_deepstack, r"the encoder of qwen3_5 has no DeepStack: expected no layers, got \[0, 2\]"),
        ("qwen3_5_moe", says_deepstack, "the encoder of qwen3_5_moe has no DeepStack"),
        ("qwen3_5", has_a_merger, "do not agree on DeepStack: expected 0 .* got 1 in the weights"),
        ("qwen3_vl", says_none, "do not agree on DeepStack: expected 0 .* got 3 in the weights"),
        ("qwen3_vl", says_deepstack, r"do not agree on DeepStack: expected 2 .*\[0, 2\], got 3 in the weights"),
        ("qwen3_vl_moe", has_a_merger, "do not agree on DeepStack: expected 3 .* got 4 in the weights"),
        ("qwen3_vl", not_layers, "is not a list of layers"),
    ],
)
def test_deepstack_of_config_and_weights_must_agree(
    model_type: str, spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = copy_of(model_type, tmp_path)
    spoil(folder)
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=words):
        _ = checkpoint.model_hash  # what a server does first
    with pytest.raises(CheckpointError, match=words):
        load_torch_encoder(checkpoint)
    with pytest.raises(CheckpointError, match=words):
        plan_export(str(folder), "64x96", None, ("fp32",))


def test_another_type_is_refused_on_one_line(tmp_path: Path) -> None:
    folder = copy_of("qwen3_5", tmp_path)
    edit_config(folder, lambda document: document.update(model_type="qwen2_5_vl"))
    result = run_here("export", str(folder), "--out", str(tmp_path / "b"))
    assert result.returncode == 2
    assert "qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, got qwen2_5_vl" in " ".join(result.stderr.split())


def test_a_bundle_against_a_checkpoint_of_another_type(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(ModelMismatchError, match=r"\(qwen3_5\), got tiny-qwen3_vl \(qwen3_vl\)"):
        open_model_of(open_bundle(bundle_of("qwen3_5")), str(tiny_checkpoint("qwen3_vl")))
