"""The language model alone: no visual parameter, no visual byte read into a tensor, equal logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import modeling_utils

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.errors import CheckpointError, InputError
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.engines.transformers.model_inputs import generation_inputs
from qwen3vl_edge.server.options import ServerOptions
from tests.support.server_checkpoint import make_case, make_checkpoint, oracle


def load(folder: Path, **options: str) -> LoadedModel:
    return load_language_model(
        open_checkpoint(str(folder)), ServerOptions(**{"model": "", "device_map": "cpu", **options})
    )


@pytest.fixture(params=[False, True], ids=["dense", "moe"])
def moe(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_no_visual_parameter_and_counts_add_up(moe: bool) -> None:
    loaded = load(make_checkpoint(moe))
    names = [name for name, _ in loaded.model.named_parameters()]
    assert names
    assert not [name for name in names if "visual" in name]
    assert not list(loaded.model.model.visual.buffers())
    assert not any(tensor.is_meta for tensor in loaded.model.state_dict().values())
    whole = sum(parameter.numel() for parameter in oracle(moe).model.parameters())
    assert loaded.parameters + loaded.vision_parameters == whole
    assert loaded.vision_parameters == sum(item.numel() for item in oracle(moe).model.model.visual.parameters())


def test_logits_equal_the_unsplit_model(moe: bool) -> None:
    loaded, case, unsplit = load(make_checkpoint(moe)), make_case("image and clip", moe), oracle(moe).model
    inputs = generation_inputs(case.request, loaded)
    grids = {"image": inputs["image_grid_thw"], "video": inputs["video_grid_thw"]}
    with torch.no_grad():
        unsplit.model.rope_deltas = None
        expected = unsplit(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            pixel_values=case.pixels[0],
            pixel_values_videos=case.pixels[1],
            image_grid_thw=grids["image"],
            video_grid_thw=grids["video"],
        ).logits
        actual = loaded.model(**inputs).logits
        without = {**inputs, "mm_encoder_outputs": dict(inputs["mm_encoder_outputs"])}
        image = without["mm_encoder_outputs"]["image"]
        image.deepstack_features = [tuple(item * 0 for item in level) for level in image.deepstack_features]
        changed = loaded.model(**without).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (changed - expected).abs().max() > 0.01  # DeepStack reaches the logits, so the equality means something


class RecordingFile:
    """A safetensors file that notes which tensors are read."""

    def __init__(self, opened: Any, read: set[str]) -> None:
        self._opened = opened
        self._read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        self._read.add(name)
        return self._opened.get_tensor(name)

    def get_slice(self, name: str) -> RecordingSlice:
        return RecordingSlice(self._opened.get_slice(name), name, self._read)


class RecordingSlice:
    def __init__(self, lazy: Any, name: str, read: set[str]) -> None:
        self._lazy = lazy
        self._name = name
        self._read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lazy, name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        self._read.add(self._name)
        return self._lazy[index]


def test_visual_tensors_are_never_read(moe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    opens = modeling_utils.safe_open
    monkeypatch.setattr(modeling_utils, "safe_open", lambda *a, **k: RecordingFile(opens(*a, **k), read))
    folder = make_checkpoint(moe)
    held = set(load_file(folder / "model.safetensors"))
    visual = {name for name in held if name.startswith("model.visual.")}
    load(folder)
    assert read == held - visual
    read.clear()
    type(oracle(moe).model).from_pretrained(folder)  # the control: the same spy sees the unsplit model read them all
    assert read == held
    assert visual


def test_pixels_are_refused() -> None:
    loaded = load(make_checkpoint())
    with pytest.raises(RuntimeError, match="send embeddings"):
        loaded.model.get_image_features(torch.zeros(4, 1536), torch.tensor([[1, 2, 2]]))


def test_dtype_auto_is_the_checkpoints_and_explicit_wins(copy: Path) -> None:
    assert load(copy).dtype == torch.float32
    edit_config(copy, dtype="bfloat16")
    assert load(copy).dtype == torch.bfloat16
    assert load(copy, dtype="float16").dtype == torch.float16


def test_device_map_and_eager_attention() -> None:
    loaded = load(make_checkpoint(), device_map="auto", attention="eager")
    assert loaded.attention == "eager"
    assert loaded.device.type in ("cpu", "cuda")


def test_flash_attention_that_is_not_installed_is_one_line() -> None:
    pytest.importorskip("torch")
    try:
        import flash_attn  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("flash-attn is installed")
    with pytest.raises(CheckpointError) as caught:
        load(make_checkpoint(), attention="flash_attention_2")
    assert caught.value.field == "--attention"
    assert "flash" in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_missing_weight_of_the_language_model_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    assert caught.value.field == name


def test_weight_of_another_shape_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "model.language_model.norm.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError):
        load(copy)


def test_config_without_a_key_is_refused(copy: Path) -> None:
    file = copy / "config.json"
    config = json.loads(file.read_text())
    del config["text_config"]["vocab_size"]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="vocab_size"):
        load(copy)


def test_end_tokens_come_from_the_tokenizer_if_the_checkpoint_names_none(copy: Path) -> None:
    assert load(copy).end_ids == (2, 0)
    (copy / "generation_config.json").unlink()
    assert set(load(copy).end_ids) == {0, 2}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dtype": "int8"}, "--dtype"),
        ({"attention": "flash"}, "--attention"),
        ({"port": 70000}, "port"),
        ({"max_queue": 0}, "max_queue"),
    ],
)
def test_bad_options_are_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        ServerOptions(**{"model": "x", **changes})  # type: ignore[arg-type]
    assert caught.value.field == field
