"""What an export leaves behind: files, manifest, determinism; and what it refuses, leaving nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLVideoProcessor

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Manifest
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import BucketError, CheckpointError, ContractError, InputError, ParityError
from qwen3vl_edge.contract.pixels.policy import PIXEL_POLICIES, PictureLimits, qwen_vl_utils_policy
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.onnx import check
from qwen3vl_edge.export.unreachable_buckets import unreachable_buckets
from qwen3vl_edge.tools.dev.random_checkpoint import RandomCheckpoint, encoder_checkpoint
from tests.support.encoders.export_models import (
    assert_close,
    edit_config,
    graph_of,
    picture,
    processor_pixels,
    run_encoder,
    run_graph,
    sharded_checkpoint,
)
from tests.support.run_cli import run_here


def small_export(model: Path, out: Path, **options: Any) -> Manifest:
    return export_bundle(str(model), out, **({"image_buckets": "64x96", "dynamic": False} | options))


@pytest.fixture
def checkpoint(tmp_path: Path) -> RandomCheckpoint:
    return encoder_checkpoint(tmp_path / "model")


def test_twice_gives_the_same_files(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    options = {"video_buckets": "4x64x64", "precisions": ("fp32", "fp16"), "dynamic": True}
    one = small_export(checkpoint.path, tmp_path / "one", **options)
    two = small_export(checkpoint.path, tmp_path / "two", **options)
    assert one.files == two.files
    assert one.model == two.model


def test_manifest_and_graphs_agree(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    written = small_export(checkpoint.path, tmp_path / "b", precisions=("fp32", "fp16"), dynamic=True)
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest == written
    assert {"processor/config.json", "processor/preprocessor_config.json"} <= set(written.processor)
    for item in written.precisions:
        assert [graph.kind for graph in item.graphs] == ["fixed", "image_uint8", "dynamic"]
        for graph in item.graphs:
            model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
            for recorded, found in ((graph.inputs, model.graph.input), (graph.outputs, model.graph.output)):
                assert [spec.name for spec in recorded] == [value.name for value in found]
                for spec, value in zip(recorded, found, strict=True):
                    sizes = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
                    assert sizes == spec.shape
            assert {opset.domain for opset in model.opset_import} == {""}
            assert "blocks.3.attn.qkv" in {node.name for node in model.graph.node}
            assert tuple(row.output for row in graph.parity) == written.vision.output_names
            assert bundle.graph_path(graph).stat().st_size < 100_000


def test_progress_runs_from_start_to_end(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    seen: list[float] = []
    small_export(checkpoint.path, tmp_path / "b", progress=lambda what, done: seen.append(done))
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] <= 1


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_language_shards_are_not_needed(moe: bool, tmp_path: Path) -> None:
    checkpoint = sharded_checkpoint(tmp_path / "model", moe)
    visual = {shard.name for shard in Checkpoint(checkpoint.path, "m").shards}
    others = [file for file in checkpoint.path.glob("*.safetensors") if file.name not in visual]
    assert others
    for file in others:
        file.unlink()
    manifest = small_export(checkpoint.path, tmp_path / "b")
    assert manifest.model.model_type == ("qwen3_vl_moe" if moe else "qwen3_vl")
    bundle, grid = open_bundle(tmp_path / "b"), Grid(1, 4, 6)
    values = processor_pixels(checkpoint.path, picture(64, 96))
    outputs = run_graph(bundle, graph_of(bundle, "fixed", grid, "fp32"), {"pixel_values": values})
    assert_close(outputs, run_encoder(checkpoint.encoder, grid, values), 1e-4)


def test_names_without_model_prefix(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    file = checkpoint.path / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(file).items()}, file)
    assert small_export(checkpoint.path, tmp_path / "b").precisions


def test_processor_config_in_one_file(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    old = checkpoint.path / "preprocessor_config.json"
    document = {"image_processor": json.loads(old.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}}
    (checkpoint.path / "processor_config.json").write_text(json.dumps(document))
    old.unlink()
    manifest = small_export(checkpoint.path, tmp_path / "b")
    assert manifest.preprocessing.image_mean == (0.1, 0.2, 0.3)
    assert manifest.pixels is not None
    assert manifest.pixels.image.min_pixels == 1024
    assert manifest.pixels.video.max_pixels == Qwen3VLVideoProcessor.size["longest_edge"]  # it says nothing of clips


def test_the_pixel_policy_is_chosen_at_export(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    limits = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    file = checkpoint.path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": limits}))
    policies = {}
    for name in PIXEL_POLICIES:
        written = small_export(checkpoint.path, tmp_path / name, pixel_policy=name)
        policies[name] = open_bundle(tmp_path / name).pixels
        assert written.pixels == policies[name]
        assert json.loads((tmp_path / name / "manifest.json").read_text())["pixels"]["name"] == name
    assert policies["checkpoint"].image == PictureLimits(65_536, 16_777_216)
    assert policies["qwen-vl-utils"] == qwen_vl_utils_policy(written.vision.geometry.factor)
    with pytest.raises(InputError, match="no such pixel policy"):
        small_export(checkpoint.path, tmp_path / "b", pixel_policy="any")


def test_buckets_outside_of_the_pixel_policy_are_named(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    """Limits of 4096 to 20,000 pixels: 32x64 and 256x256 are outside, 64x64 and 128x128 on them or within."""
    file = checkpoint.path / "preprocessor_config.json"
    limits = {"shortest_edge": 4096, "longest_edge": 20_000}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": limits}))
    options = ["--no-dynamic", "--buckets", "32x64,64x64,128x128,256x256"]
    done = run_here("export", str(checkpoint.path), "--out", str(tmp_path / "b"), *options)
    assert done.returncode == 0, done.stderr
    small, large = done.stderr.strip().splitlines()
    assert "bucket 32x64 has 2048 pixels, and the pixel policy checkpoint gives pictures 4096 to 20000 (least:" in small
    assert "size.shortest_edge of preprocessor_config.json" in small
    assert "bucket 256x256 has 65536 pixels" in large
    assert (
        "(most: size.longest_edge of preprocessor_config.json): none is resized to this bucket's size, but to" in large
    )
    within = open_bundle(tmp_path / "b").manifest
    assert len(unreachable_buckets(within)) == 2
    assert unreachable_buckets(replace(within, pixels=None)) == []
    assert "a frame" not in small
    clips = replace(within.precisions[0].graphs[0], bucket="4x2x4")  # 8 frames of 2048 pixels
    graphs = replace(within.precisions[0], graphs=(clips,))
    qwen = replace(within, precisions=(graphs,), pixels=qwen_vl_utils_policy(32))
    (line,) = unreachable_buckets(qwen)
    assert "bucket 8x32x64 has 2048 pixels a frame, and the pixel policy qwen-vl-utils gives clips 131072 to" in line


def _truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = path / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


QKV = "model.visual.blocks.1.attn.qkv"


def _drop(path: Path) -> None:
    _change_weights(path, lambda tensors: tensors.__delitem__(f"{QKV}.bias"))


def _reshape(path: Path) -> None:
    _change_weights(path, lambda tensors: tensors.update({f"{QKV}.bias": torch.zeros(7)}))


def _integers(path: Path) -> None:
    _change_weights(path, lambda tensors: tensors.update({f"{QKV}.bias": tensors[f"{QKV}.bias"].long()}))


BROKEN_CHECKPOINTS = [
    pytest.param(_truncate, "truncated", id="truncated"),
    pytest.param(_drop, "blocks.1.attn.qkv.bias", id="tensor-missing"),
    pytest.param(_reshape, "blocks.1.attn.qkv.bias", id="tensor-shape"),
    pytest.param(_integers, "F32, F16 or BF16", id="tensor-dtype"),
    pytest.param(lambda path: (path / "model.safetensors").unlink(), "missing", id="no-weights"),
    pytest.param(lambda path: (path / "preprocessor_config.json").unlink(), "image processor", id="no-processor"),
    pytest.param(
        lambda path: (path / "preprocessor_config.json").write_text("{"), "preprocessor_config", id="bad-processor"
    ),
    pytest.param(
        lambda path: (path / "preprocessor_config.json").write_text('{"patch_size": 14}'),
        "patch_size",
        id="other-patch",
    ),
    pytest.param(
        lambda path: (path / "preprocessor_config.json").write_text('{"merge_size": 2}'),
        "patch_size is not the encoder's: expected 16, got 14",
        id="default-patch",
    ),
    pytest.param(
        lambda path: (path / "video_preprocessor_config.json").write_text('{"patch_size": 14}'),
        "the video processor's patch_size",
        id="other-video-patch",
    ),
]
BROKEN_CONFIGS = [
    ("spatial_merge_size", 1),
    ("spatial_merge_size", 0),
    ("patch_size", [16, 14]),
    ("temporal_patch_size", [2, 2]),
    ("hidden_act", "prelu"),
    ("rope_parameters", {"rope_type": "yarn", "rope_theta": 10000.0}),
    ("num_heads", 7),
    ("num_heads", 0),
    ("num_position_embeddings", 2300),
    ("deepstack_visual_indexes", [1, 4]),
    ("deepstack_visual_indexes", [1, 1]),
    ("depth", "four"),
]


def assert_refused(kind: type[ContractError], says: str, model: Path, out: Path, **options: Any) -> None:
    """One clear line, and neither a folder nor a leftover beside it."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind) as caught:
        small_export(model, out, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


@pytest.mark.parametrize(("damage", "says"), BROKEN_CHECKPOINTS)
def test_broken_checkpoints(
    damage: Callable[[Path], object], says: str, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    damage(checkpoint.path)
    assert_refused(CheckpointError, says, checkpoint.path, tmp_path / "bundle")


@pytest.mark.parametrize(("name", "value"), BROKEN_CONFIGS)
def test_unsupported_configs(name: str, value: object, checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    edit_config(checkpoint.path, **{name: value})
    assert_refused(CheckpointError, name, checkpoint.path, tmp_path / "bundle")


def test_the_head_width_is_what_it_got(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    edit_config(checkpoint.path, hidden_size=64, num_heads=7)
    assert_refused(
        CheckpointError,
        "expected a head width that is a multiple of 4, got 9.14286 (hidden_size 64 by 7 heads)",
        checkpoint.path,
        tmp_path / "bundle",
    )


def test_a_single_file_beside_a_stale_index(checkpoint: RandomCheckpoint) -> None:
    """transformers reads model.safetensors where there is one (`_get_resolved_checkpoint_files`)."""
    expected = open_checkpoint(str(checkpoint.path)).model_hash
    stale = {"weight_map": {"model.visual.patch_embed.proj.weight": "model-00001-of-00002.safetensors"}}
    (checkpoint.path / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert open_checkpoint(str(checkpoint.path)).model_hash == expected


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"image_buckets": "450x448"}, BucketError, "Use 448"),
        ({"image_buckets": "448"}, BucketError, "HEIGHTxWIDTH"),
        ({"video_buckets": "3x64x64"}, BucketError, "multiple of 2 frames"),
        ({"image_buckets": ""}, BucketError, "--buckets"),
        ({"precisions": ("int3",)}, InputError, "fp32 or fp16"),
        ({"precisions": ()}, InputError, "none"),
    ],
)
def test_bad_options(
    options: dict[str, Any], kind: type[ContractError], says: str, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    assert_refused(kind, says, checkpoint.path, tmp_path / "bundle", **options)


def test_weights_beyond_float16_stay_float32(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    _change_weights(checkpoint.path, lambda tensors: tensors[f"{QKV}.weight"][-1].fill_(1e5))
    manifest = small_export(checkpoint.path, tmp_path / "bundle", precisions=("fp16",))
    kept = {item.layer for item in manifest.precision("fp16").headroom if item.precision == "fp32"}
    assert QKV.removeprefix("model.visual.") in kept


def test_a_miss_leaves_the_previous_bundle(
    checkpoint: RandomCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    before = small_export(checkpoint.path, out)
    monkeypatch.setitem(check.PRECISIONS, "fp32", replace(check.PRECISIONS["fp32"], min_cosine=1.1))
    assert_refused(ParityError, "fp32/1x4x6.onnx", checkpoint.path, out)
    assert open_bundle(out).manifest == before


def test_a_new_bundle_replaces_the_previous(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    small_export(checkpoint.path, out)
    after = small_export(checkpoint.path, out, image_buckets="32x64")
    assert open_bundle(out).manifest == after
    assert not (out / "fp32" / "1x4x6.onnx").exists()


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "folder"])
def test_what_is_no_bundle_is_not_replaced(as_file: bool, checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    kept = out if as_file else out / "letter.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("keep me")
    assert_refused(InputError, "not a bundle", checkpoint.path, out)
    assert kept.read_text() == "keep me"
